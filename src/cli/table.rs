//! Tables of plain text: columns as wide as their widest cell.

use std::io::{self, Write};

/// Writes `rows` under `head`, columns two spaces apart.
///
/// # Errors
/// When `out` cannot be written.
pub(super) fn write_table<const N: usize>(
    out: &mut dyn Write,
    head: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().chain([&head]);
        let widths = cells.map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    });
    for row in [&head].into_iter().chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_spaces() {
        let rows = [["a", "bcd"], ["long", ""]].map(|row| row.map(str::to_owned));
        let mut out = Vec::new();
        write_table(&mut out, ["NAME", "X"], &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME  X\na     bcd\nlong\n"
        );
    }
}
