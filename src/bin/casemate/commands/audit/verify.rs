//! `casemate audit verify FILE --public-key PEM`: a file and a public key, no daemon.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

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

/// Verifies a file that was exported.
pub fn file(context: &Context, file: &Path, key: &Path) -> Result<(), Failure> {
    let public = public_key(key)?;
    let opened: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let opened = File::open(file);
        Box::new(opened.map_err(|error| Failure::io(format!("open {}", file.display()), &error))?)
    };
    match verify(BufReader::with_capacity(1 << 20, opened), &public) {
        Ok(Ok(verified)) => report(context, &verified, None),
        Ok(Err(finding)) => report(context, &Verified::default(), Some(&finding)),
        Err(error) => Err(Failure::io(format!("read {}", file.display()), &error)),
    }
}

fn verify(mut lines: impl BufRead, public: &[u8]) -> io::Result<Result<Verified, Finding>> {
    let name = key_name(public);
    let key = UnparsedPublicKey::new(&ED25519, public);
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
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        let read = (&mut lines)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(verifier.finish_file());
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
        if let Err(finding) = verifier.push(whole) {
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
