//! The first message of TLS, as far as the name in it goes (RFC 8446 section 4.1.2, RFC 6066 section 3).
//!
//! Pure: bytes in, what they say so far out. It may come in several records, and is looked at whole.

/// Longest first message that is waited for.
pub const MAX_HELLO_BYTES: usize = 32 << 10;

/// What bytes from the beginning of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More must come before that is known.
    Incomplete,
    /// They are no TLS.
    NotTls,
    /// They begin as TLS does and then break its rules, or are too long.
    Malformed,
    /// They are a whole first message, with the name of the server in it, if there is one.
    Named(Option<Vec<u8>>),
}

/// A handshake record, and the first message in it.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// The extension with the server's name, and the only type of name.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Reads what has come so far.
#[must_use]
pub fn read_hello(bytes: &[u8]) -> Hello {
    match bytes.first() {
        None => return Hello::Incomplete,
        Some(&HANDSHAKE) => {}
        Some(_) => return Hello::NotTls,
    }
    match bytes.get(1) {
        None => return Hello::Incomplete,
        Some(3) => {}
        Some(_) => return Hello::NotTls,
    }
    if bytes.len() > MAX_HELLO_BYTES {
        return Hello::Malformed;
    }
    match gathered(bytes) {
        Some(Gathered::Whole(message)) => match name(&message) {
            Some(name) => Hello::Named(name),
            None => Hello::Malformed,
        },
        Some(Gathered::Part) => Hello::Incomplete,
        None => Hello::Malformed,
    }
}

enum Gathered {
    Whole(Vec<u8>),
    Part,
}

/// The body of the first message, out of as many records as it takes.
fn gathered(bytes: &[u8]) -> Option<Gathered> {
    let mut rest = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let Some(whole) = whole_message(&message)? {
            return Some(Gathered::Whole(whole));
        }
        if rest.0.is_empty() {
            return Some(Gathered::Part);
        }
        let Some(&kind) = rest.0.first() else {
            return Some(Gathered::Part);
        };
        if kind != HANDSHAKE {
            return None;
        }
        let Some(header) = rest.0.get(..5) else {
            return Some(Gathered::Part);
        };
        let mut header = Reader(header);
        let (_, major, _, length) = (header.u8()?, header.u8()?, header.u8()?, header.u16()?);
        // An empty record says nothing, and 2^14 is the most (RFC 8446 section 5.1).
        if major != 3 || length == 0 || length > 1 << 14 {
            return None;
        }
        rest.take(5)?;
        let part = rest.0.get(..usize::from(length)).unwrap_or(rest.0);
        message.extend_from_slice(part);
        rest.take(part.len())?;
    }
}

/// The body of a message that is whole; `None` within when it is not yet.
#[expect(
    clippy::option_option,
    reason = "what is broken is not what is missing"
)]
fn whole_message(message: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut reader = Reader(message);
    match message.first() {
        Some(&CLIENT_HELLO) => {}
        Some(_) => return None,
        None => return Some(None),
    }
    if message.len() < 4 {
        return Some(None);
    }
    reader.take(1)?;
    let length = usize::from(reader.u8()?) << 16 | usize::from(reader.u16()?);
    if length > MAX_HELLO_BYTES {
        return None;
    }
    Some(reader.0.get(..length).map(<[u8]>::to_vec))
}

/// The server's name in a client's hello; `None` when it is not one.
#[expect(
    clippy::option_option,
    reason = "what is broken is not what is missing"
)]
fn name(body: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut body = Reader(body);
    // Version and random.
    body.take(2 + 32)?;
    let session = body.u8()?;
    body.take(usize::from(session))?;
    let suites = body.u16()?;
    body.take(usize::from(suites))?;
    let compressions = body.u8()?;
    body.take(usize::from(compressions))?;
    if body.0.is_empty() {
        return Some(None);
    }
    let length = body.u16()?;
    let mut extensions = Reader(body.take(usize::from(length))?);
    if !body.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let data = extensions.take(usize::from(length))?;
        if kind != SERVER_NAME {
            continue;
        }
        // Twice is forbidden (RFC 8446 section 4.2), and one reader would take the first, another the last.
        if found.is_some() {
            return None;
        }
        found = Some(server_name(data)?);
    }
    Some(found)
}

fn server_name(data: &[u8]) -> Option<Vec<u8>> {
    let mut data = Reader(data);
    let length = data.u16()?;
    let mut list = Reader(data.take(usize::from(length))?);
    if !data.0.is_empty() || list.u8()? != HOST_NAME {
        return None;
    }
    let length = list.u16()?;
    let name = list.take(usize::from(length))?;
    // One name, for the same reason.
    (list.0.is_empty() && !name.is_empty()).then(|| name.to_vec())
}

/// Takes from the front, and never more than there is.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes: [u8; 2] = self.take(2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[..], bytes].concat()
    }

    /// A first message with these extensions.
    fn hello_of(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &sized(data)].concat())
            .collect();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &[0],
            &sized(&[0x13, 1]),
            &[1, 0],
            &sized(&extensions),
        ]
        .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO][..], &length[1..], &body].concat()
    }

    fn named(name: &[u8]) -> (u16, Vec<u8>) {
        (
            SERVER_NAME,
            sized(&[&[HOST_NAME][..], &sized(name)].concat()),
        )
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|part| [&[HANDSHAKE, 3, 1][..], &sized(part)].concat())
            .collect()
    }

    /// A client's first message for this server.
    pub(in crate::egress) fn client_hello(name: &str) -> Vec<u8> {
        records(
            &hello_of(&[(43, vec![2, 3, 4]), named(name.as_bytes())]),
            1 << 14,
        )
    }

    #[test]
    fn the_name_is_found_in_one_record_and_in_many() {
        let message = hello_of(&[
            (43, vec![2, 3, 4]),
            named(b"example.org"),
            (51, vec![0; 900]),
        ]);
        for size in [1, 2, 3, 7, 100, 1 << 14] {
            let bytes = records(&message, size);
            assert_eq!(
                read_hello(&bytes),
                Hello::Named(Some(b"example.org".to_vec())),
                "{size}"
            );
            for end in 0..bytes.len() {
                assert_eq!(
                    read_hello(&bytes[..end]),
                    Hello::Incomplete,
                    "{end} of {size}"
                );
            }
            // What comes after it does not matter.
            let more = [&bytes[..], &[20, 3, 3, 0, 1, 1]].concat();
            assert_eq!(
                read_hello(&more),
                Hello::Named(Some(b"example.org".to_vec()))
            );
        }
        assert_eq!(read_hello(&records(&hello_of(&[]), 99)), Hello::Named(None));
    }

    #[test]
    fn what_is_no_tls_and_what_breaks_its_rules_are_told_apart() {
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"SSH-2.0",
            &[22, 2, 0],
            &[0x80, 0x2e, 1],
            &[23, 3, 3],
        ] {
            assert_eq!(read_hello(other), Hello::NotTls);
        }
        let twice = hello_of(&[named(b"a.org"), named(b"b.org")]);
        let list = sized(
            &[
                &[HOST_NAME][..],
                &sized(b"a.org"),
                &[HOST_NAME],
                &sized(b"b.org"),
            ]
            .concat(),
        );
        let two = hello_of(&[(SERVER_NAME, list)]);
        let empty = hello_of(&[named(b"")]);
        let odd = hello_of(&[(SERVER_NAME, sized(&[&[1][..], &sized(b"a.org")].concat()))]);
        let short = hello_of(&[(SERVER_NAME, vec![0, 99])]);
        let server = [&[2][..], &hello_of(&[named(b"a.org")])[1..]].concat();
        let long = [1, 1, 0, 0, 0].to_vec();
        for message in [twice, two, empty, odd, short, server, long] {
            assert_eq!(
                read_hello(&records(&message, 1 << 14)),
                Hello::Malformed,
                "{message:?}"
            );
        }
        let message = hello_of(&[named(b"a.org")]);
        let alert_between = [
            &records(&message[..20], 99)[..],
            &[21, 3, 3, 0, 2, 1, 0],
            &records(&message[20..], 99),
        ]
        .concat();
        assert_eq!(read_hello(&alert_between), Hello::Malformed);
        assert_eq!(read_hello(&[22, 3, 1, 0, 0]), Hello::Malformed);
        assert_eq!(read_hello(&[22, 3, 1, 0xff, 0xff]), Hello::Malformed);
        assert_eq!(read_hello(&[22; 3][..1]), Hello::Incomplete);
        let endless = [&[22, 3, 1, 0x40, 0][..], &vec![1; MAX_HELLO_BYTES]].concat();
        assert_eq!(read_hello(&endless), Hello::Malformed);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_hello(&bytes);
            let _ = read_hello(&records(&bytes, 100));
        }

        #[test]
        fn what_is_known_does_not_change_with_what_comes(extra in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..200) {
            let bytes = [&client_hello("example.org")[..], &extra].concat();
            let early = read_hello(bytes.get(..cut).unwrap_or(&bytes));
            let late = read_hello(&bytes);
            prop_assert!(early == Hello::Incomplete || early == late);
        }
    }
}
