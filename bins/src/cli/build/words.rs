//! Splits and expands the operands of a Containerfile as Docker does: quotes, backslashes, `$NAME`, `${NAME}`, `${NAME:-word}`
//! and `${NAME:+word}` (Dockerfile reference, "Environment replacement").

use std::iter::Peekable;
use std::str::Chars;

/// Why operands make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordError {
    #[error("a quotation mark {0} is never closed")]
    Quote(char),
    #[error("`${{` is never closed")]
    Brace,
    #[error("`${{{0}}}` is not understood")]
    Modifier(String),
}

/// The words of `text`; `value` knows the variables.
pub(super) fn split(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, WordError> {
    let mut words = Vec::new();
    let mut chars = text.trim().chars().peekable();
    while chars.peek().is_some() {
        words.push(word(&mut chars, value, Some(char::is_whitespace))?);
        while chars.next_if(|char| char.is_whitespace()).is_some() {}
    }
    Ok(words)
}

/// `text` as one word.
pub(super) fn expand(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String, WordError> {
    word(&mut text.trim().chars().peekable(), value, None)
}

/// Reads up to what `ends` a word, or all there is.
fn word(
    chars: &mut Peekable<Chars<'_>>,
    value: &dyn Fn(&str) -> Option<String>,
    ends: Option<fn(char) -> bool>,
) -> Result<String, WordError> {
    let mut word = String::new();
    while let Some(char) = chars.next_if(|char| !ends.is_some_and(|ends| ends(*char))) {
        match char {
            '\'' => loop {
                match chars.next() {
                    Some('\'') => break,
                    Some(char) => word.push(char),
                    None => return Err(WordError::Quote('\'')),
                }
            },
            '"' => loop {
                match chars.next() {
                    Some('"') => break,
                    Some('$') => variable(chars, value, &mut word)?,
                    Some('\\') => match chars.next() {
                        Some(char @ ('"' | '$' | '\\')) => word.push(char),
                        Some(char) => word.extend(['\\', char]),
                        None => return Err(WordError::Quote('"')),
                    },
                    Some(char) => word.push(char),
                    None => return Err(WordError::Quote('"')),
                }
            },
            '\\' => word.extend(chars.next()),
            '$' => variable(chars, value, &mut word)?,
            char => word.push(char),
        }
    }
    Ok(word)
}

/// What comes after a `$`.
fn variable(
    chars: &mut Peekable<Chars<'_>>,
    value: &dyn Fn(&str) -> Option<String>,
    word: &mut String,
) -> Result<(), WordError> {
    let is_name = |char: &char| char.is_ascii_alphanumeric() || *char == '_';
    if chars.next_if_eq(&'{').is_none() {
        let mut name = String::new();
        while let Some(char) = chars.next_if(is_name) {
            name.push(char);
        }
        match name.as_str() {
            "" => word.push('$'),
            name => word.push_str(&value(name).unwrap_or_default()),
        }
        return Ok(());
    }
    let mut inside = String::new();
    let mut depth = 1;
    loop {
        match chars.next() {
            Some('}') if depth == 1 => break,
            Some(char) => {
                depth += i32::from(char == '{') - i32::from(char == '}');
                inside.push(char);
            }
            None => return Err(WordError::Brace),
        }
    }
    let end = inside.find(|char: char| !is_name(&char)).unwrap_or(inside.len());
    let (name, modifier) = inside.split_at(end);
    let known = value(name).filter(|value| !value.is_empty());
    let other = |word: &str| expand(word, value);
    let expanded = match (modifier.get(..2), modifier) {
        (_, "") if !name.is_empty() => value(name).unwrap_or_default(),
        (Some(":-"), _) if !name.is_empty() => known.map_or_else(|| other(&modifier[2..]), Ok)?,
        (Some(":+"), _) if !name.is_empty() => known.map_or_else(|| Ok(String::new()), |_| other(&modifier[2..]))?,
        _ => return Err(WordError::Modifier(inside)),
    };
    word.push_str(&expanded);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/root".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn words_are_split_and_expanded_as_docker_does() {
        let split = |text: &str| split(text, &value).unwrap();
        assert_eq!(split(r#"A=b  C="d e" F='g $HOME' "#), ["A=b", "C=d e", "F=g $HOME"]);
        assert_eq!(split(r#"P=$HOME/bin:"${HOME}"\ x Q=\$HOME"#), ["P=/root/bin:/root x", "Q=$HOME"]);
        assert_eq!(split("a${NONE:-b c}d ${HOME:+yes}${EMPTY:+no} ${EMPTY:-${HOME}}"), ["ab cd", "yes", "/root"]);
        assert_eq!(split("cost=5$ $"), ["cost=5$", "$"]);
        assert!(split("  ").is_empty());
        assert_eq!(expand(" a b\t", &value).unwrap(), "a b");
    }

    #[test]
    fn what_never_ends_is_an_error() {
        assert_eq!(split("a 'b", &value), Err(WordError::Quote('\'')));
        assert_eq!(split("\"b\\", &value), Err(WordError::Quote('"')));
        assert_eq!(expand("${HOME", &value), Err(WordError::Brace));
        assert_eq!(expand("${HOME%x}", &value), Err(WordError::Modifier("HOME%x".into())));
        assert_eq!(expand("${:-x}", &value), Err(WordError::Modifier(":-x".into())));
        assert_eq!(expand("${ä}", &value), Err(WordError::Modifier("ä".into())));
    }
}
