//! `casemate e2b env`: what a shell exports so that programs made for E2B come here.

use std::collections::BTreeMap;

use casemate::base::exit::Exit;
use casemate::base::id::KeyId;
use casemate::base::secret::Secret;
use clap::Subcommand;

use super::Context;
use crate::failure::Failure;
use crate::output;

/// For programs that were made for E2B
#[derive(Subcommand)]
pub enum Command {
    /// Print the lines that make a shell's programs come here: eval "$(casemate e2b env)"
    #[command(after_long_help = "\
The lines hold the API key: they are for a shell, not for a screen or a file that
others read. Clients that demand it get the key in E2B's spelling, which is the same key.

Where casemated has a certificate of an authority of your own, Python's clients need
SSL_CERT_FILE and JavaScript's NODE_EXTRA_CA_CERTS; with --ca they are printed as well.")]
    Env,
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// No key, or none of ours.
    pub fn execute(self, context: &Context) -> Result<(), Failure> {
        let Self::Env = self;
        let key = context.key()?;
        let key = in_e2bs_spelling(key.expose()).ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "E2B's clients need an API key, and this is none; an operator makes one with `casemate admin key create NAME`",
            )
        })?;
        let url = context.url.trim_end_matches('/');
        let mut lines = BTreeMap::from([
            ("E2B_API_KEY", key.expose().clone()),
            ("E2B_API_URL", url.to_owned()),
            ("E2B_SANDBOX_URL", url.to_owned()),
        ]);
        if let Some(ca) = &context.papers.ca {
            for name in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
                lines.insert(name, ca.display().to_string());
            }
        }
        if context.json {
            return output::json(&lines);
        }
        for (name, value) in lines {
            output::line(&format!("export {name}={}", quoted(&value)))?;
        }
        Ok(())
    }
}

/// The key as E2B's clients want to see it: hexadecimal digits, first of its name, then of its secret.
fn in_e2bs_spelling(key: &str) -> Option<Secret<String>> {
    if key.starts_with("e2b_") {
        return Some(Secret::new(key.to_owned()));
    }
    let (name, secret) = key.strip_prefix("cmk_")?.split_once('_')?;
    let id: KeyId = format!("key_{name}").parse().ok()?;
    let id = u128::from_be_bytes(id.to_bytes());
    Some(Secret::new(format!("e2b_{id:032x}{secret}")))
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:".contains(&byte);
    if text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_two_spellings() {
        let secret = "ab".repeat(32);
        let spelled = in_e2bs_spelling(&format!("cmk_00000000000000000000000001_{secret}"));
        let expected = format!("e2b_{:032x}{secret}", 1);
        assert_eq!(spelled.as_ref().map(Secret::expose), Some(&expected));
        let again = in_e2bs_spelling(&expected);
        assert_eq!(again.as_ref().map(Secret::expose), Some(&expected));
        for other in ["", "cmk_", "cmk_x_y", "cmo_abc", "eyJhbGciOi"] {
            assert!(in_e2bs_spelling(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        for text in ["http://127.0.0.1:7272", "/a b/c's.pem", "$(x)`y`", ""] {
            let line = format!("printf %s {}", quoted(text));
            let said = std::process::Command::new("sh")
                .args(["-c", &line])
                .output();
            assert_eq!(said.unwrap().stdout, text.as_bytes(), "{text}");
        }
    }
}
