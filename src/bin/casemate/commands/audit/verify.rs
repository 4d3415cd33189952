//! `casemate audit verify FILE... --public-key PEM`: files and a public key, no daemon.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::base::exit::Exit;
use casemate::model::record::{SignedCheckpoint, key_name};
use casemate::model::verify::{Fault, Finding, Signed, Verified, Verifier};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::super::Context;
use super::whole::{SPKI, report};
use crate::failure::Failure;

/// Longest line; no record comes near it.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Longest file of a key.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// How a zstd frame begins (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The window of what Casemate writes is 2 MiB; a stranger's could ask for gigabytes.
const MAX_WINDOW_LOG: u32 = 24;

/// Verifies files that were exported or archived; each must go on where the one before it ends.
pub fn files(context: &Context, files: &[PathBuf], key: &Path) -> Result<(), Failure> {
    let public = public_key(key)?;
    let name = key_name(&public);
    let key = UnparsedPublicKey::new(&ED25519, &public);
    let check = |signed: &SignedCheckpoint| {
        if signed.checkpoint.key != name {
            Signed::ByAnother
        } else if key
            .verify(signed.signed.as_bytes(), &signed.signature)
            .is_ok()
        {
            Signed::Yes
        } else {
            Signed::No
        }
    };
    let mut verifier = Verifier::new(&check);
    let mut all: Option<Verified> = None;
    for file in files {
        let failed = |error| Failure::io(format!("read {}", file.display()), &error);
        let read = opened(file)?;
        let next = each_line(read, |line| verifier.push(line)).map_err(failed)?;
        match next.and_then(|()| verifier.next_file()) {
            Ok((right, next)) => {
                verifier = next;
                let all = all.get_or_insert_with(|| Verified {
                    after: right.after,
                    ..Verified::default()
                });
                all.records += right.records;
                all.checkpoints += right.checkpoints;
                (all.seq, all.signed_seq) = (right.seq, right.signed_seq);
            }
            Err(mut finding) => {
                if files.len() > 1 {
                    finding.text = format!("{}: {}", file.display(), finding.text);
                }
                return report(context, &all.unwrap_or_default(), Some(&finding));
            }
        }
    }
    report(context, &all.unwrap_or_default(), None)
}

/// The lines of a file, whether it is compressed or not: its first bytes tell.
fn opened(file: &Path) -> Result<Box<dyn BufRead>, Failure> {
    let failed = |error| Failure::io(format!("open {}", file.display()), &error);
    let opened: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(failed)?)
    };
    let mut plain = BufReader::with_capacity(1 << 20, opened);
    if !plain.fill_buf().map_err(failed)?.starts_with(&ZSTD) {
        return Ok(Box::new(plain));
    }
    let mut zstd = zstd::Decoder::with_buffer(plain).map_err(failed)?;
    zstd.window_log_max(MAX_WINDOW_LOG).map_err(failed)?;
    Ok(Box::new(BufReader::new(zstd)))
}

/// Hands on each line without its line break, until one is wrong.
fn each_line(
    mut lines: impl BufRead,
    mut take: impl FnMut(&str) -> Result<(), Finding>,
) -> io::Result<Result<(), Finding>> {
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        let read = (&mut lines)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(Ok(()));
        }
        number += 1;
        // A line without its end was cut, also where it happens to read well.
        let whole = line
            .strip_suffix(b"\n")
            .and_then(|line| std::str::from_utf8(line).ok());
        let Some(whole) = whole else {
            return Ok(Err(Finding {
                line: number,
                seq: 0,
                fault: Fault::Unreadable,
                text: "this is no line of text, or its end is missing".to_owned(),
            }));
        };
        if let Err(finding) = take(whole) {
            return Ok(Err(finding));
        }
    }
}

/// Reads an Ed25519 public key (RFC 8410) in PEM.
fn public_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_BYTES).read_to_string(&mut text));
    read.map_err(|error| Failure::io(format!("read the key {}", path.display()), &error))?;
    let body: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let der = STANDARD.decode(body.trim()).ok();
    let key = der.as_deref().and_then(|der| der.strip_prefix(&SPKI));
    match key {
        Some(key) if key.len() == 32 => Ok(key.to_vec()),
        _ => Err(Failure::new(
            Exit::Usage,
            format!(
                "{} is no Ed25519 public key in PEM; `casemate audit key` prints it",
                path.display()
            ),
        )),
    }
}
