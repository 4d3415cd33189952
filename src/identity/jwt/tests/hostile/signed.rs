//! Algorithms that are not those of the key, and signatures that are none.
#![expect(clippy::too_many_lines, reason = "a table is as long as it is")]

use serde_json::json;

use super::super::super::token;
use super::super::mint::{By, Draft, encode, path};
use super::*;

/// Algorithms that are not those of the key.
pub(super) fn algorithms() -> Vec<Row> {
    let mut rows = Vec::new();
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!("nOnE"),
        json!(""),
        json!(null),
        json!(256),
        json!(true),
        json!(["RS256"]),
        json!({"alg": "RS256"}),
        json!("rs256"),
        json!("RS256 "),
        json!(" RS256"),
        json!("RS256\u{0}"),
        json!("HS384"),
        json!("HS512"),
        json!("RS1"),
        json!("RS384"),
        json!("RS512"),
        json!("PS256"),
        json!("ES384"),
        json!("ES512"),
        json!("ES256K"),
        json!("Ed25519"),
        json!("Ed448"),
        json!("RSA-OAEP"),
        json!("dir"),
        json!("A128KW"),
    ] {
        for (kind, by) in [
            ("signed", By::Rsa),
            ("without a signature", By::Bytes(vec![0])),
        ] {
            let token = rsa().header("alg", alg.clone()).by(by).token();
            rows.push(row(format!("alg {alg}, {kind}"), token, Refused::Algorithm));
        }
    }
    let no_alg = rsa().without_header("alg").token();
    rows.push(row("no alg", no_alg, Refused::Algorithm));
    let unsigned = rsa()
        .header("alg", "none".into())
        .by(By::Bytes(Vec::new()))
        .token();
    rows.push(row(
        "none, and an empty signature",
        unsigned,
        Refused::Algorithm,
    ));
    // The public key as a secret, in every form in which it is known.
    let pem = std::fs::read(path("rsa.pem")).unwrap();
    let der = {
        let text = String::from_utf8(pem.clone()).unwrap();
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap()
    };
    for (name, secret) in [
        ("the PEM", pem.clone()),
        ("the PEM without its end", pem.trim_ascii_end().to_vec()),
        ("the DER", der),
        ("the modulus", member("rsa", "n")),
        (
            "the modulus in base64url",
            encode(member("rsa", "n")).into_bytes(),
        ),
        ("the whole set", std::fs::read(path("jwks.json")).unwrap()),
        ("nothing", Vec::new()),
        ("the point of Ed25519", member("ed", "x")),
    ] {
        for kid in ["rsa", "ec", "ed"] {
            let token = Draft::public("HS256", kid, By::Secret(secret.clone())).token();
            rows.push(row(
                format!("HS256 with {name} as the secret, kid {kid}"),
                token,
                Refused::Algorithm,
            ));
        }
    }
    let iss = |name: &str| format!("https://{name}.example.com");
    let own_secret = Draft::public("HS256", "rsa", By::Hmac).token();
    rows.push(row(
        "HS256 with the secret of another issuer",
        own_secret,
        Refused::Algorithm,
    ));
    for (alg, kid, by) in [
        ("RS256", "ec", By::Rsa),
        ("RS256", "ed", By::Rsa),
        ("ES256", "rsa", By::Ec),
        ("ES256", "ed", By::Ec),
        ("EdDSA", "rsa", By::Ed),
        ("EdDSA", "ec", By::Ed),
    ] {
        let token = Draft::public(alg, kid, by).token();
        rows.push(row(
            format!("{alg} with the name of the key {kid}"),
            token,
            Refused::Algorithm,
        ));
    }
    let es256 = Draft::public("ES256", "x", By::Ec)
        .claim("iss", iss("pem").into())
        .token();
    rows.push(row(
        "ES256 where the only key is of RSA",
        es256,
        Refused::Algorithm,
    ));
    for (alg, by) in [("RS256", By::Rsa), ("ES256", By::Ec), ("EdDSA", By::Ed)] {
        let token = Draft::secret().header("alg", alg.into()).by(by).token();
        rows.push(row(
            format!("{alg} of an issuer with a secret"),
            token,
            Refused::Algorithm,
        ));
    }
    rows
}

/// Signatures that are none.
pub(super) fn signatures() -> Vec<Row> {
    let es = || Draft::public("ES256", "ec", By::Ec);
    let ed = || Draft::public("EdDSA", "ed", By::Ed);
    let bytes = |draft: Draft, bytes: Vec<u8>| draft.by(By::Bytes(bytes)).token();
    // The signature of a draft, changed.
    let changed = |draft: &Draft, change: &dyn Fn(&mut Vec<u8>)| {
        let token = draft.token();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut signature = token::decode(signature).unwrap();
        change(&mut signature);
        format!("{message}.{}", encode(signature))
    };
    let zero_r = |signature: &mut Vec<u8>| signature[..32].fill(0);
    let zero_s = |signature: &mut Vec<u8>| signature[32..].fill(0);
    // The order of P-256 (FIPS 186-4 appendix D.1.2.3) and of Ed25519, little-endian (RFC 8032 section 5.1).
    let n: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let l: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let beyond = |signature: &mut Vec<u8>| {
        let mut carry = 0_u16;
        for (byte, more) in signature[32..].iter_mut().zip(l) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
    };
    let swapped = |signature: &mut Vec<u8>| signature.rotate_left(32);
    let other = |draft: Draft| draft.claim("sub", "other".into()).token();
    let with_signature_of = |draft: Draft, other: &str| {
        let token = draft.token();
        let (message, _) = token.rsplit_once('.').unwrap();
        format!("{message}.{}", other.rsplit_once('.').unwrap().1)
    };
    let rows = vec![
        ("RS256: zeros", bytes(rsa(), vec![0; 256])),
        ("RS256: one", bytes(rsa(), [vec![0; 255], vec![1]].concat())),
        ("RS256: the modulus", bytes(rsa(), member("rsa", "n"))),
        ("RS256: a byte short", changed(&rsa(), &|s| truncate_one(s))),
        ("RS256: a byte more", changed(&rsa(), &|s| s.push(0))),
        ("RS256: a zero before", changed(&rsa(), &|s| s.insert(0, 0))),
        ("RS256: one byte", bytes(rsa(), vec![0])),
        ("RS256: another hash", rsa().by(By::Rsa512).token()),
        ("RS256: another padding", rsa().by(By::RsaPss).token()),
        (
            "RS256: of other claims",
            with_signature_of(rsa(), &other(rsa())),
        ),
        ("RS256: by the key for ES256", rsa().by(By::Ec).token()),
        ("RS256: by the key for EdDSA", rsa().by(By::Ed).token()),
        ("RS256: a hash with the secret", rsa().by(By::Hmac).token()),
        ("ES256: zeros", bytes(es(), vec![0; 64])),
        ("ES256: r is zero", changed(&es(), &zero_r)),
        ("ES256: s is zero", changed(&es(), &zero_s)),
        ("ES256: both are the order", bytes(es(), [n, n].concat())),
        (
            "ES256: s is the order",
            changed(&es(), &|s| s[32..].copy_from_slice(&n)),
        ),
        ("ES256: r and s change places", changed(&es(), &swapped)),
        ("ES256: a byte short", changed(&es(), &|s| truncate_one(s))),
        ("ES256: a byte more", changed(&es(), &|s| s.push(0))),
        ("ES256: in ASN.1", es().by(By::EcDer).token()),
        (
            "ES256: of other claims",
            with_signature_of(es(), &other(es())),
        ),
        ("ES256: by the key for EdDSA", es().by(By::Ed).token()),
        ("EdDSA: zeros", bytes(ed(), vec![0; 64])),
        ("EdDSA: s beyond the order", changed(&ed(), &beyond)),
        (
            "EdDSA: the neutral point",
            bytes(ed(), [vec![1], vec![0; 63]].concat()),
        ),
        ("EdDSA: a byte short", changed(&ed(), &|s| truncate_one(s))),
        ("EdDSA: a byte more", changed(&ed(), &|s| s.push(0))),
        (
            "EdDSA: twice",
            changed(&ed(), &|s| s.extend_from_within(..)),
        ),
        (
            "EdDSA: of other claims",
            with_signature_of(ed(), &other(ed())),
        ),
        ("EdDSA: by the key for ES256", ed().by(By::Ec).token()),
        ("HS256: zeros", bytes(Draft::secret(), vec![0; 32])),
        (
            "HS256: half of it",
            changed(&Draft::secret(), &|s| s.truncate(16)),
        ),
        (
            "HS256: one byte of it",
            changed(&Draft::secret(), &|s| s.truncate(1)),
        ),
        (
            "HS256: a byte more",
            changed(&Draft::secret(), &|s| s.push(0)),
        ),
        (
            "HS256: another secret",
            Draft::secret().by(By::Secret(vec![7; 32])).token(),
        ),
        (
            "HS256: an empty secret",
            Draft::secret().by(By::Secret(Vec::new())).token(),
        ),
        (
            "HS256: the secret and a line's end",
            Draft::secret()
                .by(By::Secret([member("hmac", "k"), vec![b'\n']].concat()))
                .token(),
        ),
        (
            "HS256: the secret in base64url",
            Draft::secret()
                .by(By::Secret(encode(member("hmac", "k")).into_bytes()))
                .token(),
        ),
        (
            "a key of the same kind, of somebody else",
            token_by(1, "ed", "public"),
        ),
        ("the other key of the set", token_by(1, "other", "two")),
        (
            "a key of another issuer",
            rsa()
                .claim("iss", "https://two.example.com".into())
                .header("alg", "EdDSA".into())
                .header("kid", "one".into())
                .by(By::Ed)
                .token(),
        ),
    ];
    let signature = |(name, token)| row(name, token, Refused::Signature);
    rows.into_iter().map(signature).collect()
}

fn truncate_one(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - 1);
}
