//! The page: its three files, and the data of the runs between them.

use serde::Serialize;

use super::run_folder::RunFolder;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What the page shows.
#[derive(Debug, Serialize)]
pub struct Report {
    /// When it was made, in seconds since 1970.
    pub made: f64,
    /// What is laid over each other.
    pub runs: Vec<RunFolder>,
}

/// The page as text.
///
/// # Errors
/// The data cannot be written as JSON.
pub fn page(report: &Report) -> Result<String, serde_json::Error> {
    let data = for_html(&serde_json::to_string(report)?);
    // The data come last: what they hold is not looked at for another place.
    Ok(PAGE
        .replacen("/*STYLE*/", STYLE.trim_end(), 1)
        .replacen("/*SCRIPT*/", SCRIPT.trim_end(), 1)
        .replacen("/*DATA*/", &data, 1))
}

/// JSON that nothing in it can end the element of, or turn into another one.
fn for_html(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_gets_out_of_the_data() {
        let evil =
            "</script><script>alert(1)</script><!-- & /*STYLE*/ /*SCRIPT*/ /*DATA*/ \u{2028}";
        let run = RunFolder {
            name: evil.to_owned(),
            ..RunFolder::default()
        };
        let report = Report {
            made: 1.0,
            runs: vec![run],
        };
        let page = page(&report).unwrap();
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("alert(1)</script>") && !page.contains("<!--"));
        assert_eq!(page.matches("/*DATA*/").count(), 1, "that of the name");
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = rest.split_once("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["runs"][0]["name"], evil);
    }

    #[test]
    fn the_page_loads_nothing() {
        for part in [PAGE, STYLE, SCRIPT] {
            let code = part.replace("http://www.w3.org/2000/svg", "");
            for word in [
                "http:",
                "https:",
                "//cdn",
                "fetch(",
                "import(",
                "@import",
                "innerHTML",
            ] {
                assert!(!code.contains(word), "{word}");
            }
        }
        assert!(PAGE.contains("default-src 'none'"));
    }
}
