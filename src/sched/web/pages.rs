//! The pages: static files that are part of the program. All values come through the API and enter
//! the pages as text.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};

use super::{ask::Name, error::ApiError};

/// Nothing but our own files, no inline script or style, no framing.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                   connect-src 'self'; manifest-src 'self'; form-action 'none'; \
                   base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

const ASSETS: &[(&str, &str, &str)] = &[
    ("app.css", CSS, include_str!("assets/app.css")),
    ("common.js", JS, include_str!("assets/common.js")),
    ("answer.js", JS, include_str!("assets/answer.js")),
    ("evidence.js", JS, include_str!("assets/evidence.js")),
    ("submit.js", JS, include_str!("assets/submit.js")),
    ("queue.js", JS, include_str!("assets/queue.js")),
    ("job.js", JS, include_str!("assets/job.js")),
    ("document.js", JS, include_str!("assets/document.js")),
    ("bulk.js", JS, include_str!("assets/bulk.js")),
    ("policies.js", JS, include_str!("assets/policies.js")),
    ("lab.js", JS, include_str!("assets/lab.js")),
    ("map.js", JS, include_str!("assets/map.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

pub(super) async fn queue() -> Html<&'static str> {
    Html(include_str!("assets/queue.html"))
}

pub(super) async fn job() -> Html<&'static str> {
    Html(include_str!("assets/job.html"))
}

pub(super) async fn policies() -> Html<&'static str> {
    Html(include_str!("assets/policies.html"))
}

pub(super) async fn document() -> Html<&'static str> {
    Html(include_str!("assets/document.html"))
}

pub(super) async fn lab() -> Html<&'static str> {
    Html(include_str!("assets/lab.html"))
}

pub(super) async fn asset(Name(name): Name) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|(asset, ..)| *asset == name);
    let (_, kind, text) =
        asset.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such file"))?;
    Ok(([(header::CONTENT_TYPE, *kind)], *text).into_response())
}

/// The headers that every answer carries.
pub(super) async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", CSP),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        (
            "permissions-policy",
            "camera=(), geolocation=(), microphone=()",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // The program may be newer than a cached page.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
