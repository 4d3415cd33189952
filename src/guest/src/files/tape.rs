//! The blocks of a tar stream (POSIX.1-1988 ustar with GNU's long names), as they are written and read. The header's
//! fields are the `tar` crate's; what stands here is how headers belong together.

use casemate_link::refusal::{Refusal, code};
use tar::{EntryType, Header};

use crate::child::refusal;

/// Everything in a tar stream comes in blocks of so many bytes.
pub(crate) const BLOCK: usize = 512;

/// Bytes of a name in a header.
const NAME_BYTES: usize = 100;

/// Name of the entries that carry names too long for a header.
const LONG_LINK: &[u8] = b"././@LongLink";

/// What a header says, as it is written.
pub(crate) struct Entry<'a> {
    pub(crate) kind: EntryType,
    pub(crate) name: &'a [u8],
    /// Of a symbolic link.
    pub(crate) target: &'a [u8],
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970; earlier times are told as that.
    pub(crate) mtime: u64,
}

impl Entry<'_> {
    /// Adds the entry's blocks, without its content.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (kind, text) in [
            (EntryType::GNULongLink, self.target),
            (EntryType::GNULongName, self.name),
        ] {
            if text.len() > NAME_BYTES {
                long(kind, text, out);
            }
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(self.kind);
        header.set_size(self.size);
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(self.mtime);
        finish(header, self.name, self.target, out);
    }
}

fn long(kind: EntryType, text: &[u8], out: &mut Vec<u8>) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    let length = text.len() + 1;
    header.set_size(u64::try_from(length).unwrap_or(u64::MAX));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    finish(header, LONG_LINK, b"", out);
    out.extend_from_slice(text);
    out.push(0);
    out.resize(out.len() + padding(length), 0);
}

fn finish(mut header: Header, name: &[u8], target: &[u8], out: &mut Vec<u8>) {
    let fields = header.as_old_mut();
    for (to, from) in fields.name.iter_mut().zip(name) {
        *to = *from;
    }
    for (to, from) in fields.linkname.iter_mut().zip(target) {
        *to = *from;
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// The end of an archive.
pub(crate) fn end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

/// Bytes that fill up the last block of so many.
pub(crate) fn padding(length: usize) -> usize {
    length.wrapping_neg() % BLOCK
}

/// The same of a size that is not in memory.
pub(crate) fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % 512
}

/// Whether a header's bytes are what they were when it was made: the sum of all, its own field as spaces. Some old
/// programs summed signed bytes.
pub(crate) fn is_sound(header: &Header) -> bool {
    let Ok(said) = header.cksum() else {
        return false;
    };
    let field = 148..156;
    let bytes = header.as_bytes().iter().enumerate();
    let counted = bytes.map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
    let (plain, signed) = counted.fold((0_u32, 0_i32), |(plain, signed), byte| {
        (
            plain + u32::from(byte),
            signed + i32::from(byte.cast_signed()),
        )
    });
    said == plain || i32::try_from(said) == Ok(signed)
}

/// What a PAX header (POSIX.1-2001, pax) says of the entry after it, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    /// Seconds since 1970.
    pub(crate) mtime: Option<i64>,
    /// GNU's sparse files, version 1.0: the file's own name and size; where its pieces belong stands before them.
    pub(crate) sparse_name: Option<Vec<u8>>,
    pub(crate) sparse_size: Option<u64>,
    pub(crate) sparse_major: Option<u64>,
}

impl Extensions {
    /// Adds what a PAX header's records say: `length key=value\n`.
    pub(crate) fn read(&mut self, mut records: &[u8]) -> Result<(), Refusal> {
        while !records.is_empty() {
            let record =
                next_record(&mut records).ok_or_else(|| bad("an extended header is damaged"))?;
            let (key, value) = record;
            match key {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.target = Some(value.to_owned()),
                b"size" => self.size = Some(number(value)?),
                b"mtime" => {
                    // Fractions are below what is kept.
                    let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                    self.mtime = std::str::from_utf8(whole)
                        .ok()
                        .and_then(|text| text.parse().ok());
                }
                b"GNU.sparse.name" => self.sparse_name = Some(value.to_owned()),
                b"GNU.sparse.realsize" => self.sparse_size = Some(number(value)?),
                b"GNU.sparse.major" => self.sparse_major = Some(number(value)?),
                b"GNU.sparse.map" | b"GNU.sparse.numblocks" => {
                    return Err(bad("sparse files of this kind are not known"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn next_record<'a>(records: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(records.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let record = records.get(space + 1..length)?;
    let (newline, record) = record.split_last()?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    *records = records.get(length..)?;
    let (key, value) = record.split_at_checked(equals)?;
    (*newline == b'\n').then_some((key, value.get(1..)?))
}

pub(crate) fn number(text: &[u8]) -> Result<u64, Refusal> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| bad("a number in the archive is none"))
}

/// Says what is wrong with an archive.
pub(crate) fn bad(what: &str) -> Refusal {
    refusal(code::BAD_ARCHIVE, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let (kind, target) = (EntryType::Regular, &b""[..]);
        Entry {
            kind,
            name,
            target,
            size: 9 << 30,
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: 3,
        }
        .write(&mut out);
        out
    }

    #[test]
    fn headers_are_sound_until_a_bit_is_turned() {
        let mut block = entry(b"a");
        assert_eq!(block.len(), BLOCK);
        assert!(is_sound(Header::from_byte_slice(&block)));
        assert_eq!(
            Header::from_byte_slice(&block).entry_size().unwrap(),
            9 << 30
        );
        block[3] ^= 1;
        assert!(!is_sound(Header::from_byte_slice(&block)));
    }

    #[test]
    fn names_too_long_for_a_header_have_an_entry_of_their_own() {
        assert_eq!(entry(&[b'x'; 100]).len(), BLOCK);
        let long = entry(&[0xff; 101]);
        assert_eq!(long.len(), 3 * BLOCK);
        assert_eq!(&long[BLOCK..BLOCK + 102], [&[0xff; 101][..], &[0]].concat());
    }

    #[test]
    fn extended_headers_say_what_they_say() {
        let mut said = Extensions::default();
        said.read(b"14 path=a\xffb=c\n12 size=123\n23 mtime=1350244992.02\n9 x.y=zz\n")
            .unwrap();
        assert_eq!(said.path.unwrap(), b"a\xffb=c");
        assert_eq!((said.size, said.mtime), (Some(123), Some(1_350_244_992)));
        for damaged in [
            &b"9 path=a"[..],
            b"x path=a\n",
            b"99 path=a\n",
            b"10 path=a",
            b"0 \n",
            b"12 size=x23\n",
            b"6 path\n",
        ] {
            assert_eq!(
                Extensions::default().read(damaged).unwrap_err().code,
                code::BAD_ARCHIVE
            );
        }
    }

    proptest! {
        #[test]
        fn no_extended_header_makes_it_panic(records in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Extensions::default().read(&records);
        }
    }
}
