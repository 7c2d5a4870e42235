"use strict";
(() => {
  const form = document.getElementById("filter");
  const entries = Array.from(document.querySelectorAll(".entry"), (node) => ({
    node,
    kind: ["bad", "open", "good"].find((kind) => node.classList.contains(kind)),
    text: node.textContent.toLowerCase(),
  }));
  const show = () => {
    const wanted = form.elements.text.value.trim().toLowerCase();
    let found = 0;
    for (const { node, kind, text } of entries) {
      const fits = form.elements[kind].checked && text.includes(wanted);
      node.classList.toggle("away", !fits);
      found += fits;
    }
    document.getElementById("found").textContent = `${found} of ${entries.length} entries`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
})();
