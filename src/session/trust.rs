//! The installation's certificate authority in a sandbox whose template asks for it: in files of their own that programs are told of.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_link::daemon::{Link, LinkError};
use casemate_link::trust::{ALL_PATH, OWN_PATH};

use super::launch::End;
use super::ready::Unready;
use crate::egress::Opener;
use crate::model::session::Reason;

/// Characters in a line of PEM (RFC 7468 section 2).
const LINE: usize = 64;

/// By what programs find it.
pub(super) fn environment() -> BTreeMap<String, String> {
    // These add to what is trusted; the others replace it.
    let own = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"].map(|name| (name, OWN_PATH));
    let all = [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "AWS_CA_BUNDLE",
    ];
    let all = all.map(|name| (name, ALL_PATH));
    let named = own.into_iter().chain(all);
    named
        .map(|(name, path)| (name.to_owned(), path.to_owned()))
        .collect()
}

/// Has the guest put it there, before anything of the session's runs. A repetition is success.
pub(super) async fn give(link: &Link, opener: &Opener) -> Result<(), Unready> {
    match link.trust(pem(opener.certificate())).await {
        Ok(()) => Ok(()),
        Err(LinkError::Refused { message, .. }) => Err(Unready::Never(End::new(
            Reason::LaunchFailed,
            format!("the sandbox cannot be told whom to trust (egress_ca): {message}"),
        ))),
        Err(error) => Err(error.into()),
    }
}

/// A certificate as text (RFC 7468).
fn pem(certificate: &[u8]) -> String {
    let coded = STANDARD.encode(certificate);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = coded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_in_lines_of_sixty_four() {
        let text = pem(&[7; 100]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2 + 3);
        assert!(lines[1..3].iter().all(|line| line.len() == LINE));
        assert_eq!(STANDARD.decode(lines[1..4].concat()).unwrap(), [7; 100]);
    }
}
