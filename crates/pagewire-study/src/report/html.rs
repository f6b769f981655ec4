//! A document as one page: its style and its charts are in it, and it needs neither a network nor a script. It is XML as
//! well, so that whatever reads XML reads it.

use super::chart::{Chart, escape, swatch};
use super::document::{Block, Document, Item, Section, Table};

/// The page's style: light and dark, narrow and wide.
const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(document: &Document) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n");
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n";
    page += "<meta name=\"color-scheme\" content=\"light dark\"/>\n";
    page +=
        &format!("<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n", escape(&document.title));
    page += &format!(
        "<header>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n",
        escape(&document.title),
        prose(&document.lead)
    );
    page += "<nav aria-label=\"Sections\">\n<ul>\n";
    for Section { id, title, .. } in &document.sections {
        page += &format!("<li><a href=\"#{id}\">{}</a></li>\n", escape(title));
    }
    page += "</ul>\n</nav>\n<main>\n";
    for section in &document.sections {
        page += &format!("<section id=\"{}\">\n<h2>{}</h2>\n", section.id, escape(&section.title));
        page.extend(section.blocks.iter().map(block));
        page += "</section>\n";
    }
    page += "</main>\n</body>\n</html>\n";
    page
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(text) => format!("<h3>{}</h3>\n", escape(text)),
        Block::Text(text) => format!("<p>{}</p>\n", prose(text)),
        Block::Verdict(text) => format!("<p class=\"verdict\">{}</p>\n", prose(text)),
        Block::List(items) => {
            let items: String = items.iter().map(|item| format!("<li>{}</li>\n", prose(item))).collect();
            format!("<ul>\n{items}</ul>\n")
        }
        Block::Table(table) => self::table(table),
        Block::Chart(chart) => figure(chart),
        Block::More { summary, blocks } => {
            let blocks: String = blocks.iter().map(self::block).collect();
            format!("<details>\n<summary>{}</summary>\n{blocks}</details>\n", prose(summary))
        }
    }
}

fn figure(chart: &Chart) -> String {
    let legend: String = chart
        .legend()
        .into_iter()
        .map(|series| format!("<li>{}<span>{}</span></li>", swatch(series), escape(&series.label())))
        .collect();
    let legend = if legend.is_empty() { legend } else { format!("<ul class=\"legend\">{legend}</ul>\n") };
    let description = escape(&chart.description);
    format!(
        "<figure>\n{legend}<div class=\"wide\" role=\"group\" aria-label=\"Chart\" tabindex=\"0\">{}</div>\n<figcaption>{description}</figcaption>\n</figure>\n",
        chart.svg()
    )
}

fn table(table: &Table) -> String {
    let heads: String =
        table.columns.iter().map(|head| format!("<th scope=\"col\">{}</th>", prose(head))).collect();
    let rows: String = table
        .rows
        .iter()
        .map(|row| {
            let items: String = row.iter().enumerate().map(|(at, item)| self::item(item, at == 0)).collect();
            format!("<tr>{items}</tr>\n")
        })
        .collect();
    format!(
        "<div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\">\n<table>\n<caption><span>{}</span></caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\
         </tbody>\n</table>\n</div>\n",
        prose(&table.caption)
    )
}

fn item(item: &Item, is_first: bool) -> String {
    match item {
        Item::Text(text) if is_first => format!("<th scope=\"row\">{}</th>", prose(text)),
        Item::Text(text) => format!("<td>{}</td>", prose(text)),
        Item::Cells(cells) => {
            let cells: Vec<String> =
                cells.iter().map(|cell| format!("<code>{}</code>", escape(cell))).collect();
            format!("<td class=\"cells\">{}</td>", cells.join(" "))
        }
        Item::Number { text, metric, cell } => {
            let (cell, text, key) = (escape(cell), escape(text), metric.key());
            format!(
                "<td class=\"number\" data-metric=\"{key}\" data-cell=\"{cell}\" title=\"{cell}\">{}</td>",
                spread(&text)
            )
        }
        Item::Missing { text, cell } => {
            let cell = cell.as_ref().map(|cell| {
                let cell = escape(cell);
                format!(" data-cell=\"{cell}\" title=\"{cell}\"")
            });
            format!("<td class=\"missing\"{}>{}</td>", cell.unwrap_or_default(), escape(text))
        }
    }
}

/// What is in brackets is set apart.
fn spread(text: &str) -> String {
    match text.split_once(" (") {
        Some((number, rest)) => format!("{number} <small>({rest}</small>"),
        None => text.to_owned(),
    }
}

/// A sentence with `code` and **what matters**.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        let part = escape(part);
        if at % 2 == 1 {
            html += &format!("<code>{part}</code>");
            continue;
        }
        for (at, part) in part.split("**").enumerate() {
            html += &if at % 2 == 1 { format!("<strong>{part}</strong>") } else { part.to_owned() };
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_have_code_and_emphasis() {
        assert_eq!(prose("a `b < c` **d** & e"), "a <code>b &lt; c</code> <strong>d</strong> &amp; e");
        assert_eq!(prose("`a ** b`"), "<code>a ** b</code>");
        assert_eq!(spread("1 ms (0.9 ms – 2 ms)†"), "1 ms <small>(0.9 ms – 2 ms)†</small>");
    }
}
