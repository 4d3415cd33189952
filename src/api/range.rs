//! Parts and preconditions: `Range` (RFC 9110 section 14) and `If-Match`, `If-None-Match`, `If-Range`
//! (section 13). Pure: what a request's headers mean for a thing of this length and this entity tag.
//!
//! One part at a time: several are answered with the whole, as the standard allows. What makes no sense
//! is ignored, as it asks for. Dates are not looked at: an entity tag says more.

use std::fmt;
use std::str::FromStr;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::error::Problem;
use super::reply::Reply;

/// An entity tag (RFC 9110 section 8.8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag {
    weak: bool,
    opaque: String,
}

/// A text that is no entity tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read an entity tag")]
pub struct BadETag;

impl ETag {
    /// Names exactly these bytes.
    ///
    /// # Errors
    /// When the text has what an entity tag may not have: spaces, quotation marks, anything but ASCII. Nor
    /// may it have a comma, which not everybody can tell from the end of an element of a list.
    pub fn strong(opaque: impl Into<String>) -> Result<Self, BadETag> {
        let opaque = opaque.into();
        let fits = opaque
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b',');
        fits.then_some(Self {
            weak: false,
            opaque,
        })
        .ok_or(BadETag)
    }

    /// The same, where other bytes may have the same meaning: no part of it may be asked for by it.
    #[must_use]
    pub fn weak(self) -> Self {
        Self { weak: true, ..self }
    }

    /// What stands between the quotation marks.
    #[must_use]
    pub fn opaque(&self) -> &str {
        &self.opaque
    }

    /// As the header `ETag` has it.
    #[must_use]
    pub fn value(&self) -> HeaderValue {
        // Checked when it was made, so that there is nothing to refuse.
        HeaderValue::from_str(&self.to_string()).unwrap_or(HeaderValue::from_static("\"\""))
    }

    fn is_strongly(&self, other: &Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    fn is_weakly(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weak = if self.weak { "W/" } else { "" };
        write!(f, "{weak}\"{}\"", self.opaque)
    }
}

impl FromStr for ETag {
    type Err = BadETag;

    fn from_str(text: &str) -> Result<Self, BadETag> {
        let (weak, quoted) = text
            .strip_prefix("W/")
            .map_or((false, text), |rest| (true, rest));
        let opaque = quoted
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .ok_or(BadETag)?;
        let tag = Self::strong(opaque)?;
        Ok(if weak { tag.weak() } else { tag })
    }
}

/// What of a thing is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: 200.
    Whole,
    /// The bytes from the first to the last, both included: 206.
    Part {
        /// Position of the first byte.
        first: u64,
        /// Position of the last byte; not before the first, and inside.
        last: u64,
    },
    /// Nothing, as nothing of what was asked for exists: 416.
    Unsatisfiable,
}

impl Selection {
    /// How many bytes it has, of a thing of `length_bytes`.
    #[must_use]
    pub const fn length_bytes(self, length_bytes: u64) -> u64 {
        match self {
            Self::Whole => length_bytes,
            Self::Part { first, last } => last.saturating_sub(first).saturating_add(1),
            Self::Unsatisfiable => 0,
        }
    }

    /// The status and the `Content-Range` to answer with.
    ///
    /// # Errors
    /// 416, with the length that there is.
    pub fn answer(
        self,
        length_bytes: u64,
    ) -> Result<(StatusCode, Option<(HeaderName, HeaderValue)>), Problem> {
        let told = match self {
            Self::Whole => return Ok((StatusCode::OK, None)),
            Self::Part { first, last } => format!("bytes {first}-{last}/{length_bytes}"),
            Self::Unsatisfiable => format!("bytes */{length_bytes}"),
        };
        let told =
            HeaderValue::try_from(told).map_err(|error| Problem::internal(error.to_string()))?;
        if self == Self::Unsatisfiable {
            let problem = Problem::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                format!("there are {length_bytes} bytes, and nothing of what Range asks for"),
            );
            return Err(problem.header(header::CONTENT_RANGE, told));
        }
        Ok((
            StatusCode::PARTIAL_CONTENT,
            Some((header::CONTENT_RANGE, told)),
        ))
    }
}

/// What `Range` and `If-Range` of a `GET` select of a thing of this length. With an entity tag that the
/// client does not have any more, that is all of it.
#[must_use]
pub fn select(headers: &HeaderMap, length_bytes: u64, tag: Option<&ETag>) -> Selection {
    let Some(range) = only(headers, &header::RANGE) else {
        return Selection::Whole;
    };
    if headers.contains_key(header::IF_RANGE) {
        let theirs = only(headers, &header::IF_RANGE).and_then(|text| text.parse::<ETag>().ok());
        // Parts of two different things make no thing, so that only a strong tag will do.
        let same = theirs
            .zip(tag)
            .is_some_and(|(theirs, ours)| theirs.is_strongly(ours));
        if !same {
            return Selection::Whole;
        }
    }
    parse(range, length_bytes).unwrap_or(Selection::Whole)
}

/// `None` where the header is to be ignored.
fn parse(range: &str, length_bytes: u64) -> Option<Selection> {
    let (unit, set) = range.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty elements of a list do not count (RFC 9110 section 5.6.1.2).
    let mut specs = set.split(',').map(trim).filter(|spec| !spec.is_empty());
    let (spec, None) = (specs.next()?, specs.next()) else {
        return None;
    };
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(match (suffix, length_bytes.checked_sub(1)) {
            (0, _) => Selection::Unsatisfiable,
            // All of nothing, which no Content-Range can say.
            (_, None) => Selection::Whole,
            (_, Some(end)) => Selection::Part {
                first: length_bytes.saturating_sub(suffix),
                last: end,
            },
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last).filter(|last| *last >= first)?
    };
    Some(match length_bytes.checked_sub(1) {
        Some(end) if first <= end => Selection::Part {
            first,
            last: last.min(end),
        },
        _ => Selection::Unsatisfiable,
    })
}

/// Digits and nothing else; what does not fit is beyond the end of everything.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// A precondition that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The client has it already: 304 to `GET` and `HEAD`.
    NotModified,
    /// It is not what the client takes it for: 412.
    Failed,
}

impl Unmet {
    /// The answer.
    ///
    /// # Errors
    /// 412.
    pub fn answer(self, tag: Option<&ETag>) -> Result<Reply, Problem> {
        match self {
            Self::NotModified => {
                let reply = Reply::empty(StatusCode::NOT_MODIFIED);
                Ok(match tag {
                    Some(tag) => reply.with(header::ETAG, tag.value()),
                    None => reply,
                })
            }
            Self::Failed => Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                "it is not what If-Match or If-None-Match says any more",
            )),
        }
    }
}

/// Whether a request is to be carried out, by its `If-Match` and `If-None-Match` in the order of RFC
/// 9110 section 13.2.2. `tag` is that of the thing as it is, `None` when there is no such thing;
/// `is_read` says that the method is `GET` or `HEAD`.
///
/// # Errors
/// [`Unmet`].
pub fn check(headers: &HeaderMap, tag: Option<&ETag>, is_read: bool) -> Result<(), Unmet> {
    if let Some(listed) = list(headers, &header::IF_MATCH)
        && !listed.has(tag, ETag::is_strongly)
    {
        return Err(Unmet::Failed);
    }
    if let Some(listed) = list(headers, &header::IF_NONE_MATCH)
        && listed.has(tag, ETag::is_weakly)
    {
        return Err(if is_read {
            Unmet::NotModified
        } else {
            Unmet::Failed
        });
    }
    Ok(())
}

/// The entity tags of a precondition.
enum Listed {
    /// `*`: whatever there is.
    Any,
    These(Vec<ETag>),
}

impl Listed {
    fn has(&self, tag: Option<&ETag>, is: fn(&ETag, &ETag) -> bool) -> bool {
        match (self, tag) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(tags), Some(tag)) => tags.iter().any(|listed| is(listed, tag)),
        }
    }
}

/// `None` where the header is absent. What is no entity tag is nobody's.
fn list(headers: &HeaderMap, name: &HeaderName) -> Option<Listed> {
    if !headers.contains_key(name) {
        return None;
    }
    let mut tags = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map_or("", trim);
        if text == "*" {
            return Some(Listed::Any);
        }
        // What comes apart at a comma is none of ours.
        tags.extend(
            text.split(',')
                .filter_map(|tag| trim(tag).parse::<ETag>().ok()),
        );
    }
    Some(Listed::These(tags))
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// A header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(trim),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn selected(range: &str, length_bytes: u64) -> Selection {
        select(&headers(&[(header::RANGE, range)]), length_bytes, None)
    }

    const fn part(first: u64, last: u64) -> Selection {
        Selection::Part { first, last }
    }

    /// The examples of RFC 9110 section 14.1.2, and what lies beside them.
    #[test]
    fn ranges_are_read_as_the_standard_says() {
        use Selection::{Unsatisfiable, Whole};
        for (range, length, wanted) in [
            ("bytes=0-499", 10_000, part(0, 499)),
            ("bytes=500-999", 10_000, part(500, 999)),
            ("bytes=-500", 10_000, part(9500, 9999)),
            ("bytes=9500-", 10_000, part(9500, 9999)),
            ("bytes=0-0", 10_000, part(0, 0)),
            ("BYTES=0-0", 10_000, part(0, 0)),
            ("bytes= 0-0 , ,", 10_000, part(0, 0)),
            ("bytes=0-99999", 10_000, part(0, 9999)),
            ("bytes=-99999", 10_000, part(0, 9999)),
            ("bytes=5-99999999999999999999999", 10, part(5, 9)),
            ("bytes=10000-", 10_000, Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-0", 10_000, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Whole),
            ("bytes=0-0,-1", 10_000, Whole),
            ("bytes=2-1", 10_000, Whole),
            ("bytes=", 10_000, Whole),
            ("bytes=-", 10_000, Whole),
            ("bytes=+1-2", 10_000, Whole),
            ("bytes=1 - 2", 10_000, Whole),
            ("bytes=a-b", 10_000, Whole),
            ("lines=0-1", 10_000, Whole),
            ("bytes 0-1", 10_000, Whole),
        ] {
            assert_eq!(selected(range, length), wanted, "{range} of {length}");
        }
        let twice = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=0-1")]);
        assert_eq!(select(&twice, 10, None), Whole);
    }

    #[test]
    fn a_part_and_nothing_are_told_with_the_length_that_there_is() {
        let (status, told) = part(2, 4).answer(10).unwrap();
        assert_eq!(status, 206);
        assert_eq!(told.unwrap().1, "bytes 2-4/10");
        assert_eq!(Selection::Whole.answer(10).unwrap(), (StatusCode::OK, None));
        let problem = Selection::Unsatisfiable.answer(10).unwrap_err();
        let reply = problem.into_reply(crate::base::id::RequestId::from_bytes([0; 16]));
        assert_eq!(reply.response.status(), 416);
        assert_eq!(reply.response.headers()["content-range"], "bytes */10");
    }

    #[test]
    fn a_part_of_something_else_is_not_given() {
        let tag: ETag = "\"a\"".parse().unwrap();
        let weak = tag.clone().weak();
        for (if_range, tag, wanted) in [
            ("\"a\"", Some(&tag), part(0, 1)),
            ("\"b\"", Some(&tag), Selection::Whole),
            ("\"a\"", Some(&weak), Selection::Whole),
            ("W/\"a\"", Some(&tag), Selection::Whole),
            ("W/\"a\"", Some(&weak), Selection::Whole),
            ("\"a\"", None, Selection::Whole),
            (
                "Sat, 29 Oct 1994 19:43:31 GMT",
                Some(&tag),
                Selection::Whole,
            ),
        ] {
            let headers = headers(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, if_range)]);
            assert_eq!(select(&headers, 10, tag), wanted, "{if_range}");
        }
    }

    #[test]
    fn preconditions_hold_or_are_told_which_way_they_do_not() {
        let tag: ETag = "\"a\"".parse().unwrap();
        let weak = tag.clone().weak();
        let (must, must_not) = (header::IF_MATCH, header::IF_NONE_MATCH);
        for (name, value, tag, wanted) in [
            (&must, "\"a\"", Some(&tag), Ok(())),
            (&must, "\"b\", \"a\"", Some(&tag), Ok(())),
            (&must, "*", Some(&tag), Ok(())),
            (&must, "*", None, Err(Unmet::Failed)),
            (&must, "\"b,*,c\"", Some(&tag), Err(Unmet::Failed)),
            (&must, "\"a\"", None, Err(Unmet::Failed)),
            (&must, "\"b\"", Some(&tag), Err(Unmet::Failed)),
            (&must, "nonsense", Some(&tag), Err(Unmet::Failed)),
            (&must, "\"a\"", Some(&weak), Err(Unmet::Failed)),
            (&must_not, "\"a\"", Some(&tag), Err(Unmet::NotModified)),
            (&must_not, "W/\"a\"", Some(&tag), Err(Unmet::NotModified)),
            (&must_not, "*", Some(&tag), Err(Unmet::NotModified)),
            (&must_not, "*", None, Ok(())),
            (&must_not, "\"b\"", Some(&tag), Ok(())),
        ] {
            let headers = headers(&[(name.clone(), value)]);
            assert_eq!(check(&headers, tag, true), wanted, "{name}: {value}");
            let written = wanted.map_err(|_| Unmet::Failed);
            assert_eq!(check(&headers, tag, false), written, "{name}: {value}");
        }
        assert_eq!(check(&HeaderMap::new(), None, true), Ok(()));
        let reply = Unmet::NotModified.answer(Some(&tag)).unwrap();
        assert_eq!(reply.response.status(), 304);
        assert_eq!(reply.response.headers()["etag"], "\"a\"");
        let code = Unmet::Failed.answer(None).map_err(|problem| problem.code());
        assert_eq!(code.err(), Some("precondition_failed"));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_lies_inside(range in "(bytes=)?[-0-9 ,]{0,12}", length in 0..2000_u64) {
            match selected(&range, length) {
                Selection::Part { first, last } => {
                    prop_assert!(first <= last && last < length, "{}-{}", first, last);
                    prop_assert_eq!(part(first, last).length_bytes(length), last - first + 1);
                }
                Selection::Whole | Selection::Unsatisfiable => {}
            }
        }

        #[test]
        fn what_exists_is_given_as_asked(a in 0..500_u64, more in 0..500_u64, beyond in 1..500_u64) {
            let (b, length) = (a + more, a + more + beyond);
            prop_assert_eq!(selected(&format!("bytes={a}-{b}"), length), part(a, b));
            prop_assert_eq!(selected(&format!("bytes={a}-"), length), part(a, length - 1));
            prop_assert_eq!(selected(&format!("bytes=-{beyond}"), length), part(length - beyond, length - 1));
            prop_assert_eq!(selected(&format!("bytes={length}-"), length), Selection::Unsatisfiable);
        }

        #[test]
        fn a_tag_survives_its_writing(text in "[!#-+--~]{0,12}", weak: bool) {
            let tag = ETag::strong(text).unwrap();
            let tag = if weak { tag.weak() } else { tag };
            prop_assert_eq!(tag.to_string().parse::<ETag>(), Ok(tag.clone()));
            prop_assert_eq!(tag.value(), HeaderValue::from_str(&tag.to_string()).unwrap());
        }

        #[test]
        fn no_header_makes_it_panic(range in "\\PC{0,40}", tags in "\\PC{0,40}") {
            let mut headers = HeaderMap::new();
            for (name, text) in [(header::RANGE, &range), (header::IF_RANGE, &tags), (header::IF_MATCH, &tags), (header::IF_NONE_MATCH, &tags)] {
                if let Ok(value) = HeaderValue::from_str(text) {
                    headers.insert(name, value);
                }
            }
            let tag = ETag::strong("a").unwrap();
            let _ = select(&headers, 10, Some(&tag));
            let _ = check(&headers, Some(&tag), true);
        }
    }
}
