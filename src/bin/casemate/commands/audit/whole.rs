//! The whole record, over the admin socket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::admin::protocol::{Answer, Request};
use casemate::base::exit::Exit;
use casemate::model::query::AuditFilter;
use casemate::model::verify::{Finding, Verified};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::super::Context;
use super::row;
use crate::failure::Failure;
use crate::output::{self, tell};

/// What stands before an Ed25519 public key in its `SubjectPublicKeyInfo` (RFC 8410, section 4).
pub const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// What an export is written as.
#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// The record's own lines and a signed checkpoint
    Jsonl,
    /// Events of the Open Cybersecurity Schema Framework
    Ocsf,
}

/// `casemate audit tail`.
pub async fn tail(
    context: &Context,
    last: u32,
    filter: AuditFilter,
    follow: bool,
) -> Result<(), Failure> {
    let request = Request::AuditTail {
        last,
        filter,
        follow,
    };
    let show = |lines: Vec<String>| {
        for line in lines {
            if context.json {
                output::line(&line)?;
                continue;
            }
            let record: Value = serde_json::from_str(&line).map_err(|_| Failure::mismatch())?;
            output::line(&row(&record).join("  "))?;
        }
        Ok(())
    };
    done(&context.admin().lines(request, show).await?)
}

/// `casemate audit export`.
pub async fn export(
    context: &Context,
    after: i64,
    until: Option<i64>,
    format: Format,
) -> Result<(), Failure> {
    let request = Request::AuditExport {
        after,
        until,
        ocsf: matches!(format, Format::Ocsf),
    };
    let write = |lines: Vec<String>| {
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        output::text(text.as_bytes())
    };
    done(&context.admin().lines(request, write).await?)
}

/// `casemate audit verify` without a file.
pub async fn verify(context: &Context) -> Result<(), Failure> {
    let none = |_| Err(Failure::mismatch());
    match context.admin().lines(Request::AuditVerify, none).await? {
        Answer::AuditVerified { verified, finding } => report(context, &verified, finding.as_ref()),
        _ => Err(Failure::mismatch()),
    }
}

/// `casemate audit key`.
pub async fn key(context: &Context) -> Result<(), Failure> {
    let Answer::AuditKey { public, name } = context.admin().ask(Request::AuditKey).await? else {
        return Err(Failure::mismatch());
    };
    let mut der = SPKI.to_vec();
    for pair in public.as_bytes().chunks(2) {
        let byte = std::str::from_utf8(pair)
            .ok()
            .and_then(|text| u8::from_str_radix(text, 16).ok());
        der.push(byte.ok_or_else(Failure::mismatch)?);
    }
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&der)
    );
    if context.json {
        return output::json(&json!({"name": name, "public_key": public, "pem": pem}));
    }
    output::text(pem.as_bytes())?;
    tell(&format!(
        "this is the key {name}; keep it where whoever could change the record cannot change it too"
    ));
    Ok(())
}

/// Says what was found; ends badly when it is not well.
pub fn report(
    context: &Context,
    verified: &Verified,
    finding: Option<&Finding>,
) -> Result<(), Failure> {
    if context.json {
        output::json(&json!({"ok": finding.is_none(), "verified": verified, "finding": finding}))?;
    }
    if let Some(finding) = finding {
        let place = match finding.line {
            0 => String::new(),
            line => format!("line {line}: "),
        };
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "the record is NOT what was written: {place}{}; keep it as it is, and ask who could write to it",
                finding.text
            ),
        ));
    }
    if !context.json {
        let open = verified.seq - verified.signed_seq;
        let unsigned = if open > 0 {
            format!("; the last {open} are chained, and signed with the next checkpoint")
        } else {
            String::new()
        };
        let begins = match verified.after {
            0 => String::new(),
            after => format!(" after {after}"),
        };
        output::line(&format!(
            "the record is what was written: {} records{begins} up to {}, {} signed checkpoints{unsigned}",
            verified.records, verified.seq, verified.checkpoints
        ))?;
        if verified.after > 0 {
            tell(
                "what is before is in archives: casemate audit archives, casemate audit verify FILE...",
            );
        }
    }
    Ok(())
}

fn done(answer: &Answer) -> Result<(), Failure> {
    match answer {
        Answer::Done => Ok(()),
        _ => Err(Failure::mismatch()),
    }
}
