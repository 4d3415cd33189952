//! A credential in a header, and its blotting out of what comes back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use crate::model::credential::CredentialValue;
use crate::model::inject::InjectionForm;

/// What stands where a value was.
const BLOT: u8 = b'*';

/// A credential's value as a header's; `None` when it has bytes that no header may have. One line end after it, which editors
/// leave behind, is no part of it.
pub(super) fn written(form: &InjectionForm, value: &CredentialValue) -> Option<HeaderValue> {
    let value = without_line_end(value.expose());
    let text: Zeroizing<Vec<u8>> = Zeroizing::new(match form {
        InjectionForm::Bearer => [b"Bearer ", value].concat(),
        InjectionForm::Basic => {
            let coded = Zeroizing::new(STANDARD.encode(value));
            [b"Basic ", coded.as_bytes()].concat()
        }
        InjectionForm::Within(before, after) => {
            [before.as_bytes(), value, after.as_bytes()].concat()
        }
    });
    let is_visible = |byte: &u8| *byte == b' ' || byte.is_ascii_graphic();
    if !text.iter().all(is_visible) {
        return None;
    }
    let mut written = HeaderValue::from_bytes(&text).ok()?;
    written.set_sensitive(true);
    Some(written)
}

fn without_line_end(value: &[u8]) -> &[u8] {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    value.strip_suffix(b"\r").unwrap_or(value)
}

/// Blots values out of an answer, byte for byte, so that it stays as long as it was.
#[derive(Default)]
pub(super) struct Blotter {
    values: Vec<Zeroizing<Vec<u8>>>,
    /// What came last, and could be the beginning of one.
    held: BytesMut,
}

impl Blotter {
    /// Blots this one too: as it is kept, in base64, and of `user:password` the password.
    pub(super) fn add(&mut self, form: &InjectionForm, value: &CredentialValue) {
        let value = without_line_end(value.expose());
        self.keep(value);
        self.keep(STANDARD.encode(value).as_bytes());
        if let (InjectionForm::Basic, Some(colon)) =
            (form, value.iter().position(|byte| *byte == b':'))
        {
            self.keep(value.get(colon + 1..).unwrap_or_default());
        }
        // The longest first: one can be a part of another.
        self.values
            .sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    fn keep(&mut self, value: &[u8]) {
        if !value.is_empty() {
            self.values.push(Zeroizing::new(value.to_vec()));
        }
    }

    /// Whether there is nothing to blot out.
    pub(super) fn is_idle(&self) -> bool {
        self.values.is_empty()
    }

    /// More of a body; what of it may go on.
    pub(super) fn push(&mut self, more: &[u8]) -> Bytes {
        self.held.extend_from_slice(more);
        self.blot();
        let kept = self.values.iter().map(|value| begun(&self.held, value));
        let kept = kept.max().unwrap_or(0);
        let ready = self.held.len() - kept;
        self.held.split_to(ready).freeze()
    }

    /// The body is over: the rest of it.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    fn blot(&mut self) {
        for value in &self.values {
            let mut from = 0;
            while let Some(at) = find(self.held.get(from..).unwrap_or_default(), value) {
                let begin = from + at;
                from = begin + value.len();
                if let Some(found) = self.held.get_mut(begin..from) {
                    found.fill(BLOT);
                }
            }
        }
    }

    /// The same in headers.
    pub(super) fn clean(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            let mut one = Self {
                values: self.values.clone(),
                held: BytesMut::from(value.as_bytes()),
            };
            one.blot();
            if one.held != value.as_bytes()
                && let Ok(clean) = HeaderValue::from_bytes(&one.held)
            {
                *value = clean;
            }
        }
    }
}

/// What makes an answer one that can be blotted: whole, and not compressed.
pub(super) fn ask_plainly(headers: &mut HeaderMap) {
    for name in [header::RANGE, header::IF_RANGE] {
        headers.remove(name);
    }
    let plain = HeaderValue::from_static("identity");
    headers.insert(header::ACCEPT_ENCODING, plain);
}

/// Whether an answer is in the clear.
pub(super) fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn find(text: &[u8], value: &[u8]) -> Option<usize> {
    let first = *value.first()?;
    let mut from = 0;
    loop {
        let at = text.get(from..)?.iter().position(|byte| *byte == first)?;
        if text.get(from + at..)?.starts_with(value) {
            return Some(from + at);
        }
        from += at + 1;
    }
}

/// How many bytes at the end of a text are the beginning of this value, and not all of it.
fn begun(text: &[u8], value: &[u8]) -> usize {
    let most = text.len().min(value.len().saturating_sub(1));
    (1..=most)
        .rev()
        .find(|length| text.ends_with(value.get(..*length).unwrap_or_default()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> CredentialValue {
        CredentialValue::new(text.as_bytes().to_vec()).unwrap()
    }

    fn blotter(form: &InjectionForm, text: &str) -> Blotter {
        let mut blotter = Blotter::default();
        blotter.add(form, &value(text));
        blotter
    }

    #[test]
    fn a_credential_is_written_as_its_rule_says_and_never_shown() {
        let within: InjectionForm = "token {}, ours".parse().unwrap();
        for (form, text, expected) in [
            (InjectionForm::Bearer, "abc", "Bearer abc"),
            (InjectionForm::Bearer, "abc\r\n", "Bearer abc"),
            (InjectionForm::Basic, "user:pass", "Basic dXNlcjpwYXNz"),
            (InjectionForm::Basic, "ü:\n\n", "Basic w7w6Cg=="),
            (within, "abc", "token abc, ours"),
        ] {
            let written = written(&form, &value(text)).unwrap();
            assert_eq!(written.as_bytes(), expected.as_bytes());
            assert!(!format!("{written:?}").contains("abc"));
        }
        for bad in ["a\nb", "a\r\nx: y", "ä", "\0", "a\n\n", "\u{7f}"] {
            assert_eq!(
                written(&InjectionForm::Bearer, &value(bad)),
                None,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn every_form_is_blotted_and_nothing_else_and_the_length_stays() {
        let mut blotter = blotter(&InjectionForm::Basic, "user:hush-hush");
        let text = "a user:hush-hush b dXNlcjpodXNoLWh1c2g= c hush-hush d hush-hus";
        let mut out = blotter.push(text.as_bytes()).to_vec();
        out.extend(blotter.rest());
        let expected = "a ************** b ******************** c ********* d hush-hus";
        assert_eq!(String::from_utf8(out).unwrap(), expected);

        let mut headers = HeaderMap::new();
        headers.insert(
            "x-echo",
            HeaderValue::from_static("Basic dXNlcjpodXNoLWh1c2g="),
        );
        headers.insert("x-other", HeaderValue::from_static("b"));
        blotter.clean(&mut headers);
        assert_eq!(headers["x-echo"], "Basic ********************");
        assert_eq!(headers["x-other"], "b");
    }

    proptest! {
        #[test]
        fn wherever_it_is_cut_it_is_blotted_alike(text in "[abc]{0,80}", value in "[abc]{1,6}", cuts in proptest::collection::vec(0_usize..80, 0..6)) {
            let mut whole = blotter(&InjectionForm::Bearer, &value);
            let mut expected = whole.push(text.as_bytes()).to_vec();
            expected.extend(whole.rest());
            prop_assert_eq!(expected.len(), text.len());
            prop_assert!(find(&expected, value.as_bytes()).is_none());
            let mut pieces = blotter(&InjectionForm::Bearer, &value);
            let mut cuts: Vec<_> = cuts.into_iter().map(|at| at.min(text.len())).collect();
            cuts.sort_unstable();
            let mut out = Vec::new();
            let mut from = 0;
            for to in cuts.into_iter().chain([text.len()]) {
                out.extend(pieces.push(&text.as_bytes()[from..to]));
                from = to;
            }
            out.extend(pieces.rest());
            prop_assert_eq!(out, expected);
        }
    }
}
