//! Tables for the terminal.

/// A table: a line of names, then a line for each row; the first column is aligned left, all others right. Rows may be
/// shorter than the header.
pub fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|name| name.to_string()).collect();
    let lines = || std::iter::once(&header).chain(rows);
    let width = |i: usize| lines().filter_map(|line| line.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in lines() {
        let pad = |(i, cell): (usize, &String)| {
            let width = widths.get(i).copied().unwrap_or(0);
            if i == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        };
        let cells: Vec<String> = line.iter().enumerate().map(pad).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_under_their_names() {
        let rows = [vec!["σ".to_string(), "1.25".into(), "7".into()], vec!["evolution".into(), "12.5".into()]];
        let expected = "method       FD  n\nσ          1.25  7\nevolution  12.5\n";
        assert_eq!(columns(&["method", "FD", "n"], &rows), expected);
    }
}
