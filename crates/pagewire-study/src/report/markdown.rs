//! A document as Markdown. Charts are left out: the table behind each has its numbers.

use super::document::{Block, Document, Item, Table};

/// The text.
pub(super) fn text(document: &Document) -> String {
    let mut text = format!("# {}\n\n{}\n\n", document.title, document.lead);
    for section in &document.sections {
        text += &format!("## {}\n\n", section.title);
        text.extend(section.blocks.iter().map(block));
    }
    while text.ends_with("\n\n") {
        text.pop();
    }
    text
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(text) => format!("### {text}\n\n"),
        Block::Text(text) => format!("{}\n\n", prose(text)),
        Block::Verdict(text) => format!("**{}**\n\n", prose(text)),
        Block::List(items) => {
            let items: String = items.iter().map(|item| format!("- {}\n", prose(item))).collect();
            format!("{items}\n")
        }
        Block::Table(table) => self::table(table),
        Block::Chart(_) => String::new(),
        Block::More { summary, blocks } => {
            let blocks: String = blocks.iter().map(self::block).collect();
            format!("<details><summary>{summary}</summary>\n\n{blocks}</details>\n\n")
        }
    }
}

fn table(table: &Table) -> String {
    let line = |items: Vec<String>| format!("| {} |\n", items.join(" | "));
    let heads = table.columns.iter().map(|head| cell(head)).collect();
    let rules: Vec<String> = (0..table.columns.len())
        .map(|column| {
            let is_number = |row: &Vec<Item>| matches!(row.get(column), Some(Item::Number { .. }));
            if table.rows.iter().any(is_number) { "---:".into() } else { "---".into() }
        })
        .collect();
    let rows: String = table.rows.iter().map(|row| line(row.iter().map(item).collect())).collect();
    format!("{}:\n\n{}{}{rows}\n", table.caption, line(heads), line(rules))
}

fn item(item: &Item) -> String {
    match item {
        Item::Cells(cells) => {
            let cells: Vec<String> =
                cells.iter().map(|name| format!("`{}`", name.replace('|', "\\|"))).collect();
            cells.join(" ")
        }
        other => cell(&other.text()),
    }
}

/// Text that does not end the place of a table that it is in.
fn cell(text: &str) -> String {
    prose(text).replace('|', "\\|").replace('\n', " ")
}

/// Text in which nothing is taken for HTML. Code is left as it is.
fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts: Vec<String> =
        parts.map(|(at, part)| if at % 2 == 0 { part.replace('<', "&lt;") } else { part.into() }).collect();
    parts.join("`")
}
