//! How large the parts of a template may be. What minijinja folds and nests while it compiles costs no fuel, and grows with
//! the third power of an expression's length.

/// The most bytes of a template: ten times the largest that is published.
const MAX_BYTES: usize = 1 << 20;

/// Words and signs that a tag may have outside of its strings: ten times what published templates have.
const MAX_TOKENS: usize = 2000;

/// What is too large, if anything is.
pub(super) fn problem(template: &str) -> Option<&'static str> {
    if template.len() > MAX_BYTES {
        return Some("a chat template may have 1 MiB");
    }
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        rest = &rest[start..];
        let behind = |words: &str| rest.find(words).map_or("", |at| &rest[at + words.len()..]);
        match rest.as_bytes().get(1) {
            Some(b'#') => rest = behind("#}"),
            Some(b'{' | b'%') => {
                let tag = Tag::at(rest);
                if tag.tokens > MAX_TOKENS {
                    return Some(
                        "an expression of the chat template has more than 2000 words and signs",
                    );
                }
                rest = match tag.is_raw {
                    true => behind("endraw"),
                    false => &rest[tag.length..],
                };
            }
            _ => rest = &rest[1..],
        }
    }
    None
}

/// A tag of a template.
struct Tag {
    length: usize,
    tokens: usize,
    /// It begins text in which there are no tags.
    is_raw: bool,
}

impl Tag {
    /// The one that `text` begins with.
    fn at(text: &str) -> Self {
        let close = if text.starts_with("{{") { "}}" } else { "%}" };
        let inside = &text[2..];
        let (mut quote, mut is_escaped, mut is_word) = (None, false, false);
        let (mut braces, mut tokens) = (0usize, 0);
        let mut length = text.len();
        for (at, c) in inside.char_indices() {
            if let Some(open) = quote {
                match c {
                    _ if is_escaped => is_escaped = false,
                    '\\' => is_escaped = true,
                    c if c == open => quote = None,
                    _ => {}
                }
                continue;
            }
            if braces == 0 && inside[at..].starts_with(close) {
                length = 2 + at + close.len();
                break;
            }
            let was_word = std::mem::replace(&mut is_word, c.is_alphanumeric() || c == '_');
            match c {
                '\'' | '"' => quote = Some(c),
                '{' => braces += 1,
                '}' => braces = braces.saturating_sub(1),
                _ => {}
            }
            tokens += usize::from(!(c.is_whitespace() || was_word && is_word));
        }
        let word = inside.trim_start_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        Self {
            length,
            tokens,
            is_raw: close == "%}" && word.starts_with("raw"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_expressions_are_found_wherever_they_are() {
        let long = "~1".repeat(1000);
        let text = format!("'{long}'");
        for good in [
            long.clone(),
            format!("{{# {long} #}}"),
            format!("{{{{ {text} }}}}{{{{ {text} }}}}"),
            format!("{{% raw %}}{{{{ 1{long} }}}}{{% endraw %}}"),
            format!("{{{{ 'it\\'s {long}' }}}}"),
            "{{ {'a': {}} }}{% if x %}{ % }".into(),
        ] {
            assert_eq!(problem(&good), None, "{good:.60}");
        }
        for bad in [
            format!("{{{{ 1{long} }}}}"),
            format!("x{{%- if 1{long} -%}}"),
            format!("{{{{ 1{long}"),
            format!("{{{{ {{'a': {{}}}} {long} }}}}"),
            format!("{{{{ '\\\\' {long} }}}}"),
            format!("{{% raw %}} {{{{ ' {{% endraw %}}{{{{ 1{long} }}}}"),
            format!("{{# ' #}}{{{{ 1{long} }}}}"),
        ] {
            assert!(problem(&bad).is_some(), "{bad:.60}");
        }
        assert!(problem(&"x".repeat(MAX_BYTES + 1)).is_some());
    }
}
