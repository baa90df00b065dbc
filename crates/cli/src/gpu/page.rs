//! What was found, as a page of Markdown for an issue, and as lines while it is found.

use std::fmt::Write as _;

use super::finding::{Finding, Found, Number, Table, Verdict};

/// One line about a stage that has ended.
pub(super) fn line(finding: &Finding) -> String {
    let seconds = format!("{:.1} s", finding.seconds);
    let line = format!(
        "{:<12} {:<12} {seconds:>8}",
        finding.stage,
        word(finding.verdict)
    );
    match &finding.why {
        Some(why) => format!("{line}  {why}"),
        None => line,
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Failed => "FAILED",
        Verdict::NotPossible => "not possible",
    }
}

/// The page.
pub(super) fn page(found: &Found) -> String {
    let count = |verdict| {
        found
            .findings
            .iter()
            .filter(|it| it.verdict == verdict)
            .count()
    };
    let mut page = format!(
        "# tandem doctor --gpu: {} ok, {} failed, {} not possible here\n\n",
        count(Verdict::Ok),
        count(Verdict::Failed),
        count(Verdict::NotPossible)
    );
    let sizes = if found.quick { ", small sizes" } else { "" };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        page,
        "Tandem {}, device {}{sizes}, {:.0} s.\n",
        found.version, found.device, found.seconds
    );
    let rows = found.findings.iter().map(|finding| {
        vec![
            finding.stage.clone(),
            word(finding.verdict).to_owned(),
            format!("{:.1} s", finding.seconds),
            finding.why.clone().unwrap_or_default(),
        ]
    });
    page += &table(&["stage", "result", "time", ""], &rows.collect::<Vec<_>>());
    for finding in &found.findings {
        if finding.numbers.is_empty() && finding.tables.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n## {}\n", finding.stage);
        if !finding.numbers.is_empty() {
            let rows: Vec<_> = finding.numbers.iter().map(row).collect();
            page += &table(&["", "", ""], &rows);
        }
        for Table {
            title,
            columns,
            rows,
        } in &finding.tables
        {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            let _ = writeln!(page, "\n{title}\n");
            page += &table(&columns, rows);
        }
    }
    page += "\n## machine\n\n";
    let facts = found.machine.iter().flat_map(|section| {
        let facts = section.facts.iter();
        facts.map(|fact| {
            vec![
                section.name.to_owned(),
                fact.name.clone(),
                fact.value.clone(),
            ]
        })
    });
    page += &table(&["", "", ""], &facts.collect::<Vec<_>>());
    page
}

fn row(number: &Number) -> Vec<String> {
    vec![
        number.name.clone(),
        shown(number.value),
        number.unit.clone(),
    ]
}

/// A number with as many digits as one reads.
pub(super) fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 1e-3 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let head: Vec<String> = columns.iter().map(|column| cell(column)).collect();
    let mut text = line(&head) + &format!("|{}\n", "---|".repeat(columns.len()));
    for row in rows {
        text += &line(&row.iter().map(|it| cell(it)).collect::<Vec<_>>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_counts_and_shows_and_breaks_no_table() {
        let found = Found {
            version: "1.0",
            device: "cpu",
            quick: true,
            machine: Vec::new(),
            findings: vec![
                Finding::ok()
                    .number("rate", 123.4, "TFLOP/s")
                    .named("floor", 1.0),
                Finding::failed("a | b\nc").named("steps", 2.0),
                Finding::not_possible("one device")
                    .table("Rows", &["x"], vec![vec!["y".to_owned()]])
                    .named("ranks", 0.0),
            ],
            seconds: 3.0,
        };
        let page = page(&found);
        assert!(page.starts_with("# tandem doctor --gpu: 1 ok, 1 failed, 1 not possible here\n"));
        assert!(page.contains("| rate | 123 | TFLOP/s |\n"), "{page}");
        assert!(
            page.contains("| steps | FAILED | 2.0 s | a \\| b c |\n"),
            "{page}"
        );
        assert!(page.contains("\nRows\n\n| x |\n|---|\n| y |\n"), "{page}");
        assert_eq!(
            line(&found.findings[2]),
            "ranks        not possible    0.0 s  one device"
        );
    }

    #[test]
    fn numbers_have_the_digits_that_one_reads() {
        let all = [12345.6, 1.234, 21.0, 0.0123, 1.2e-7, 0.0].map(shown);
        assert_eq!(all, ["12346", "1.23", "21", "0.0123", "1.2e-7", "0"]);
    }
}
