//! A table for people.

use std::fmt::Write as _;

use crate::out::one_line;

/// Rows of cells, each as wide as its column's widest. What a cell has of control characters is escaped.
pub fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    // Another node names itself, and says why it refuses.
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| row.map(|cell| one_line(&cell).into_owned()))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_nothing_works_on_the_terminal() {
        let rows = vec![["A", "B"], ["long\u{1b}[2J", "x\ny"]];
        let text = table(rows.into_iter().map(|row| row.map(str::to_owned)).collect());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() == 2 && !text.contains('\u{1b}'), "{text:?}");
        assert_eq!(lines[0].find('B'), lines[1].find('x'), "{text}");
    }
}
