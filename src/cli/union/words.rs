//! AUFS's option string cut into words: commas part options, colons part branches; a backslash or double quotes
//! protect both.

use anyhow::{Result, bail, ensure};

/// Cuts `text` at each `at` that is neither escaped nor quoted. Escapes and quotes stay in the parts.
///
/// # Errors
/// A quote that is not closed, or a backslash at the end.
pub(super) fn cut(text: &str, at: char) -> Result<Vec<&str>> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            c if c == at && !quoted => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    ensure!(!quoted, "{text}: a quote is not closed");
    ensure!(!escaped, "{text}: a backslash at the end");
    parts.push(&text[start..]);
    Ok(parts)
}

/// Takes escapes and quotes away: `\,` is a comma, `\054` too.
///
/// # Errors
/// A number after a backslash that is no byte, or a text that is not UTF-8 afterwards.
pub(super) fn plain(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes().peekable();
    while let Some(b) = bytes.next() {
        match b {
            b'"' => {}
            b'\\' => {
                let digits: Vec<u8> = std::iter::from_fn(|| bytes.next_if(u8::is_ascii_digit)).take(3).collect();
                if digits.is_empty() {
                    out.extend(bytes.next());
                } else {
                    let number = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
                    let Some(byte) = number.filter(|_| digits.len() == 3) else { bail!("{text}: a backslash wants three octal digits") };
                    out.push(byte);
                }
            }
            b => out.push(b),
        }
    }
    Ok(String::from_utf8(out)?)
}

/// Protects what would be cut.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, ',' | ':' | '=' | '\\' | '"') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_and_protected() {
        assert_eq!(cut("rw,dirs=/a:/b,noxino", ',').expect("plain"), ["rw", "dirs=/a:/b", "noxino"]);
        assert_eq!(cut(r"/a\:b:/c", ':').expect("escaped"), [r"/a\:b", "/c"]);
        assert_eq!(cut(r#""/a:b":/c"#, ':').expect("quoted"), [r#""/a:b""#, "/c"]);
        assert_eq!(plain(r#"/a\:b\054"c d""#).expect("plain"), "/a:b,c d");
        assert_eq!(plain(&escaped("/a,b:c=d\\\"")).expect("round"), "/a,b:c=d\\\"");
        for bad in [r#"a"b"#, "a\\"] {
            assert!(cut(bad, ',').is_err(), "{bad}");
        }
        for bad in ["\\1", "\\777"] {
            assert!(plain(bad).is_err(), "{bad}");
        }
    }
}
