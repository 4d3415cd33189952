//! Tokens of enemies, each with a name and the reason for which it is refused. None may ever be taken.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::MAX_TOKEN_BYTES;
use super::mint::{By, Draft, NOW_S, encode, path, raw};
use super::*;

struct Row {
    name: String,
    token: String,
    reason: Refused,
}

fn row(name: impl Into<String>, token: impl Into<String>, reason: Refused) -> Row {
    Row {
        name: name.into(),
        token: token.into(),
        reason,
    }
}

fn rsa() -> Draft {
    Draft::rsa()
}

fn header() -> String {
    rsa().header.to_string()
}

fn claims() -> String {
    rsa().claims.to_string()
}

/// What is no token, or no longer one.
fn malformed() -> Vec<Row> {
    let good = rsa().token();
    let parts: Vec<&str> = good.split('.').collect();
    let [h, c, s] = parts.as_slice() else {
        panic!("three parts")
    };
    let signed = |header: &[u8], claims: &[u8]| raw(header, claims, &By::Rsa);
    let in_header = |text: &str| signed(text.as_bytes(), claims().as_bytes());
    let in_claims = |text: &str| signed(header().as_bytes(), text.as_bytes());
    let deep = format!("{}1{}", "{\"a\":".repeat(9), "}".repeat(9));
    let claim_after = |extra: &str| claims().replacen('{', &format!("{{{extra},"), 1);
    let claim_before_end = |extra: &str| format!("{},{extra}}}", claims().trim_end_matches('}'));
    let padded = |bytes: usize| {
        // Four letters of a part stand for three bytes.
        let draft = |n: usize| rsa().claim("pad", "x".repeat(n).into()).token();
        let n = (0..bytes).rev().find(|n| draft(*n).len() <= bytes).unwrap();
        draft(n + 1)
    };
    let named = [
        ("nothing", String::new()),
        ("a dot", ".".to_owned()),
        ("two dots", "..".to_owned()),
        ("three dots", "...".to_owned()),
        ("one part", (*h).to_owned()),
        ("two parts", format!("{h}.{c}")),
        ("four parts", format!("{good}.{s}")),
        (
            "five parts, as an encrypted token has",
            format!("{h}.{h}.{c}.{c}.{s}"),
        ),
        ("a dot before", format!(".{good}")),
        ("a dot after", format!("{good}.")),
        ("no header", format!(".{c}.{s}")),
        ("no claims", format!("{h}..{s}")),
        ("a blank before", format!(" {good}")),
        ("a blank after", format!("{good} ")),
        ("a line's end after", format!("{good}\n")),
        ("a blank in the header", good.replacen('.', " .", 1)),
        ("a tab in the claims", format!("{h}.\t{c}.{s}")),
        ("a NUL after", format!("{good}\0")),
        ("padding in the header", format!("{h}=.{c}.{s}")),
        ("padding in the claims", format!("{h}.{c}==.{s}")),
        ("padding in the signature", format!("{h}.{c}.{s}==")),
        ("letters of plain base64", format!("{h}.{c}.+/{}", &s[2..])),
        (
            "bits in the signature that nothing needs",
            format!("{h}.{c}.{}", spare_bits(s)),
        ),
        (
            "letters of another alphabet",
            format!("{h}.{c}.ä{}", &s[2..]),
        ),
        ("two tokens", format!("{good},{good}")),
        ("the scheme before it", format!("Bearer {good}")),
        ("quotes around it", format!("\"{good}\"")),
        ("dots written as URLs write them", good.replace('.', "%2E")),
        (
            "the JSON form of a signature",
            json!({"protected": h, "payload": c, "signature": s}).to_string(),
        ),
        ("a header that is no JSON", in_header("alg=RS256")),
        ("a header that is a list", in_header("[\"RS256\"]")),
        ("a header that is text", in_header("\"RS256\"")),
        ("a header that is null", in_header("null")),
        ("an empty text for a header", in_header("")),
        ("claims that are no JSON", in_claims("sub=somebody")),
        (
            "claims that are a list",
            in_claims(&format!("[{}]", claims())),
        ),
        ("claims that are text", in_claims("\"claims\"")),
        ("claims that are a number", in_claims("7")),
        ("claims that are null", in_claims("null")),
        (
            "something after the header",
            in_header(&format!("{}x", header())),
        ),
        (
            "two headers",
            in_header(&format!("{}{}", header(), header())),
        ),
        (
            "two sets of claims",
            in_claims(&format!("{}{}", claims(), claims())),
        ),
        (
            "a NUL after the claims",
            in_claims(&format!("{}\0", claims())),
        ),
        (
            "a byte order mark",
            in_claims(&format!("\u{feff}{}", claims())),
        ),
        (
            "claims cut short",
            in_claims(claims().trim_end_matches('}')),
        ),
        ("a comma too many", in_claims(&claims().replace('}', ",}"))),
        ("a comment", in_claims(&claims().replacen('{', "{/**/", 1))),
        (
            "quotes of the other kind",
            in_claims(&claims().replace('"', "'")),
        ),
        (
            "half a surrogate",
            in_claims(&claim_after("\"x\":\"\\ud800\"")),
        ),
        (
            "a line's end within text",
            in_claims(&claim_after("\"x\":\"\n\"")),
        ),
        (
            "a number beyond all",
            in_claims(&claim_after("\"x\":1e999")),
        ),
        ("no number", in_claims(&claim_after("\"x\":NaN"))),
        (
            "a number with a zero before it",
            in_claims(&claim_after("\"x\":07")),
        ),
        (
            "levels without end",
            in_claims(&format!("{{\"x\":{deep}}}")),
        ),
        (
            "lists without end",
            in_claims(&claim_after(&format!(
                "\"x\":{}{}",
                "[".repeat(200),
                "]".repeat(200)
            ))),
        ),
        (
            "alg twice",
            in_header(&header().replacen('{', "{\"alg\":\"none\",", 1)),
        ),
        (
            "alg twice, the same",
            in_header(&header().replacen('{', "{\"alg\":\"RS256\",", 1)),
        ),
        (
            "alg twice, once with an escape",
            in_header(&header().replacen('{', "{\"\\u0061lg\":\"none\",", 1)),
        ),
        (
            "kid twice",
            in_header(&header().replacen('{', "{\"kid\":\"ec\",", 1)),
        ),
        (
            "something unknown twice in the header",
            in_header(&header().replacen('{', "{\"x\":1,\"x\":1,", 1)),
        ),
        (
            "iss twice",
            in_claims(&claim_after("\"iss\":\"https://evil.example.com\"")),
        ),
        ("sub twice", in_claims(&claim_after("\"sub\":\"root\""))),
        (
            "sub twice, the later wrong",
            in_claims(&claim_before_end("\"sub\":\"root\"")),
        ),
        (
            "sub twice, once with an escape",
            in_claims(&claim_before_end("\"s\\u0075b\":\"root\"")),
        ),
        ("aud twice", in_claims(&claim_after("\"aud\":\"casemate\""))),
        (
            "exp twice",
            in_claims(&claim_before_end("\"exp\":9999999999")),
        ),
        (
            "a name twice below",
            in_claims(&claim_after("\"x\":{\"a\":1,\"a\":2}")),
        ),
        (
            "a name twice in a list",
            in_claims(&claim_after("\"x\":[{\"a\":1,\"a\":1}]")),
        ),
        (
            "an empty name twice",
            in_claims(&claim_after("\"\":1,\"\":2")),
        ),
    ];
    let malformed = |(name, token)| row(name, token, Refused::Malformed);
    let mut rows: Vec<Row> = named.into_iter().map(malformed).collect();
    rows.push(row(
        "claims that are not UTF-8",
        signed(header().as_bytes(), b"{\"iss\":\"\xff\"}"),
        Refused::Malformed,
    ));
    rows.push(row("no signature", format!("{h}.{c}."), Refused::Signature));
    rows.push(row(
        "everything in small letters",
        good.to_ascii_lowercase(),
        Refused::Malformed,
    ));
    rows.push(row(
        "one letter too long",
        padded(MAX_TOKEN_BYTES),
        Refused::TooLong,
    ));
    rows.push(row("a megabyte", "a".repeat(1 << 20), Refused::TooLong));
    rows.push(row(
        "a megabyte of dots",
        ".".repeat(1 << 20),
        Refused::TooLong,
    ));
    rows
}

/// The same bytes with other bits after their end.
fn spare_bits(part: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = part.split_at(part.len() - 1);
    let at = LETTERS.find(last).unwrap();
    let other = LETTERS.as_bytes()[at ^ 1] as char;
    format!("{rest}{other}")
}

/// Algorithms that are not those of the key.
fn algorithms() -> Vec<Row> {
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
fn signatures() -> Vec<Row> {
    let es = || Draft::public("ES256", "ec", By::Ec);
    let ed = || Draft::public("EdDSA", "ed", By::Ed);
    let bytes = |draft: Draft, bytes: Vec<u8>| draft.by(By::Bytes(bytes)).token();
    // The signature of a draft, changed.
    let changed = |draft: &Draft, change: &dyn Fn(&mut Vec<u8>)| {
        let token = draft.token();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut signature = super::super::token::decode(signature).unwrap();
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

/// Headers that want more than we give.
fn headers() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Value, reason| {
        let token = rsa().header(name, value.clone()).token();
        rows.push(row(format!("header {name} {value}"), token, reason));
    };
    for value in [
        json!([]),
        json!(["exp"]),
        json!(["b64"]),
        json!(["x"]),
        json!("exp"),
        json!(null),
    ] {
        add("crit", value, Refused::Critical);
    }
    for value in [json!(true), json!(false), json!(null)] {
        add("b64", value, Refused::Critical);
    }
    let own: Value = serde_json::from_str(&jwk(&ed25519(9), "rsa")).unwrap();
    for (name, value) in [
        ("jwk", own.clone()),
        ("jwk", json!(null)),
        ("jku", json!("https://evil.example.com/keys")),
        ("jku", json!("https://public.example.com/keys")),
        ("jku", json!("file:///etc/passwd")),
        ("x5u", json!("https://evil.example.com/chain.pem")),
        ("x5c", json!(["MIIB"])),
        ("x5c", json!([])),
    ] {
        add(name, value, Refused::KeyInToken);
    }
    add("enc", json!("A256GCM"), Refused::Encrypted);
    add("zip", json!("DEF"), Refused::Encrypted);
    for value in [json!("JWT"), json!("json"), json!(null)] {
        add("cty", value, Refused::Type);
    }
    for value in [
        json!("JWE"),
        json!("Refresh"),
        json!("logout+jwt"),
        json!("dpop+jwt"),
        json!("secevent+jwt"),
        json!("jwt "),
        json!("application/"),
        json!("application/application/jwt"),
        json!(""),
        json!(1),
        json!(null),
        json!(["JWT"]),
    ] {
        add("typ", value, Refused::Type);
    }
    for value in [
        json!(null),
        json!(7),
        json!(""),
        json!(["rsa"]),
        json!({"kid": "rsa"}),
        json!("x".repeat(257)),
    ] {
        add("kid", value, Refused::Malformed);
    }
    for value in [
        "enc",
        "unknown",
        "RSA",
        "rsa ",
        "rsa\u{0}",
        "../../../../dev/null",
        "/dev/null",
        "' OR '1'='1",
        "https://evil.example.com/key",
        "*",
        "rsa,ec",
        "0",
    ] {
        add("kid", json!(value), Refused::UnknownKey);
    }
    // The key comes with the token and is what signed it.
    let mut draft = Draft::public("EdDSA", "rsa", By::Bytes(Vec::new())).header("jwk", own);
    let unsigned = draft.token();
    let signature = ed25519(9).sign(unsigned.trim_end_matches('.').as_bytes());
    draft.by = By::Bytes(signature.as_ref().to_vec());
    rows.push(row(
        "a key in the token that signed it",
        draft.token(),
        Refused::KeyInToken,
    ));
    rows.push(row(
        "no kid where two keys could be meant",
        Draft::public("EdDSA", "one", By::Ed)
            .without_header("kid")
            .claim("iss", "https://two.example.com".into())
            .token(),
        Refused::AmbiguousKey,
    ));
    rows
}

/// Claims of issuer, audience and time.
fn registered() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Value, reason| {
        let token = rsa().claim(name, value.clone()).token();
        let shown: String = value.to_string().chars().take(60).collect();
        rows.push(row(format!("{name} {shown}"), token, reason));
    };
    for value in [
        json!(null),
        json!(7),
        json!(""),
        json!(["https://public.example.com"]),
        json!("https://public.example.com/"),
        json!("HTTPS://public.example.com"),
        json!("https://PUBLIC.example.com"),
        json!("http://public.example.com"),
        json!("public"),
        json!(" https://public.example.com"),
        json!("https://public.example.com\u{0}"),
        json!("https://public.example.co"),
        json!("https://public.example.com.evil.com"),
        json!("https://nobody.example.com"),
    ] {
        add("iss", value, Refused::Issuer);
    }
    for value in [
        json!(null),
        json!(7),
        json!(true),
        json!(""),
        json!("other"),
        json!("Casemate"),
        json!("casemat"),
        json!("casemate2"),
        json!("casemate other"),
        json!("casemate,other"),
        json!(" casemate"),
        json!("*"),
        json!([]),
        json!(["other"]),
        json!(["Casemate"]),
        json!([["casemate"]]),
        json!([null]),
        json!(["casemate", 7]),
        json!({"casemate": true}),
        json!(vec!["casemate"; 1025]),
    ] {
        add("aud", value, Refused::Audience);
    }
    for value in [
        json!(NOW_S - LEEWAY_S),
        json!(NOW_S - 3600),
        json!(0),
        json!(1_799_999_970.0),
    ] {
        add("exp", value, Refused::Expired);
    }
    let not_dates = [
        json!(null),
        json!("1800000300"),
        json!(true),
        json!([1_800_000_300]),
        json!({}),
        json!(-1),
        json!(-1.5),
        json!(1e300),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(253_402_300_800_i64),
        json!("2027-01-15T08:00:00Z"),
    ];
    for name in ["exp", "nbf", "iat"] {
        for value in &not_dates {
            add(name, value.clone(), Refused::Date);
        }
    }
    for name in ["nbf", "iat"] {
        for value in [
            json!(NOW_S + LEEWAY_S + 1),
            json!(NOW_S + 3600),
            json!(253_402_300_799_i64),
        ] {
            add(name, value, Refused::Early);
        }
    }
    // In milliseconds, as some clocks have it.
    add("iat", json!(NOW_S * 1000), Refused::Date);
    for value in [
        json!(null),
        json!(7),
        json!(true),
        json!(""),
        json!(" "),
        json!("x".repeat(129)),
        json!("a b"),
        json!("a\n"),
        json!("a\r\nb"),
        json!("a\u{0}"),
        json!("\u{1b}[2J"),
        json!("a\u{7f}"),
        json!("ünï"),
        json!("\u{202e}toor"),
        json!("a\u{a0}b"),
        json!(["somebody"]),
        json!({"id": "somebody"}),
    ] {
        add("sub", value, Refused::Subject);
    }
    for (name, reason) in [
        ("iss", Refused::Issuer),
        ("aud", Refused::Audience),
        ("exp", Refused::NoExpiry),
        ("sub", Refused::Subject),
    ] {
        rows.push(row(
            format!("no {name}"),
            rsa().without(name).token(),
            reason,
        ));
    }
    let party =
        || Draft::public("ES256", "x", By::Ec).claim("iss", "https://party.example.com".into());
    for (name, draft) in [
        (
            "an audience where none is expected",
            party().claim("azp", "web".into()),
        ),
        (
            "an empty audience where none is expected",
            party().claim("azp", "web".into()).claim("aud", json!([])),
        ),
    ] {
        rows.push(row(name, draft.token(), Refused::Audience));
    }
    rows.push(row(
        "no party where one is asked for",
        party().without("aud").token(),
        Refused::Party,
    ));
    rows.push(row(
        "the name of the claim in other letters",
        rsa().with_text("\"exp\"", "\"EXP\""),
        Refused::NoExpiry,
    ));
    rows.push(row(
        "a claim with a blank in its name",
        rsa().with_text("\"aud\"", "\"aud \""),
        Refused::Audience,
    ));
    rows
}

/// Claims that the settings ask for, and those that are mapped.
fn mapped() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |path: &str, value: Value, reason| {
        let token = Draft::secret().claim(path, value.clone()).token();
        rows.push(row(format!("{path} {value}"), token, reason));
    };
    for value in [
        json!(null),
        json!("Web"),
        json!(""),
        json!("other"),
        json!(["web"]),
        json!(7),
        json!({"web": 1}),
    ] {
        add("azp", value, Refused::Party);
    }
    for value in [
        json!(NOW_S - 3600 - LEEWAY_S),
        json!(0),
        json!(NOW_S - 86_400),
    ] {
        add("iat", value, Refused::TooOld);
    }
    for value in [
        json!(false),
        json!(null),
        json!("True"),
        json!(1),
        json!([]),
        json!([false]),
        json!([["true"]]),
        json!({"true": true}),
    ] {
        add("verified", value, Refused::Claim);
    }
    for value in [
        json!("bronze"),
        json!("Gold"),
        json!(null),
        json!(["bronze"]),
        json!("gold silver"),
        json!({"gold": 1}),
    ] {
        add("plan.tier", value, Refused::Claim);
    }
    for value in [json!(8), json!(7.5), json!("07"), json!(-7), json!([])] {
        add("plan.seats", value, Refused::Claim);
    }
    for value in [
        json!([]),
        json!(["a"]),
        json!("a"),
        json!([["b"]]),
        json!(null),
    ] {
        add("flags", value, Refused::Claim);
    }
    add("plan", json!("gold"), Refused::Claim);
    add(
        "plan",
        json!([{"tier": "gold", "seats": 7}]),
        Refused::Claim,
    );
    for value in [
        json!(null),
        json!(""),
        json!(7),
        json!([]),
        json!("x y"),
        json!({"id": "u-1"}),
    ] {
        add("user.id", value, Refused::Subject);
    }
    for value in [
        json!(null),
        json!(""),
        json!("acme"),
        json!("/Acme"),
        json!("/acme/"),
        json!("/unknown"),
        json!(7),
        json!([]),
        json!(["/unknown"]),
        json!(["/acme", "/other"]),
        json!(["/acme", 7]),
        json!([["/acme"]]),
        json!({"/acme": true}),
    ] {
        add("org.team", value, Refused::Team);
    }
    add("org", json!(["/acme"]), Refused::Team);
    for value in [
        json!(null),
        json!(""),
        json!([]),
        json!(["unknown"]),
        json!("Staff"),
        json!("staff boss"),
        json!("auditor"),
        json!("team-admin"),
        json!(7),
        json!(["staff", 7]),
        json!([["staff"]]),
        json!({"staff": true}),
        json!(["inspector", "staff"]),
        json!(["boss", "inspector"]),
    ] {
        add("roles", value, Refused::Role);
    }
    for value in [
        json!(7),
        json!(true),
        json!(["sessions:read", 7]),
        json!({"sessions:read": true}),
    ] {
        add("scope", value, Refused::Scope);
    }
    for (name, reason) in [
        ("azp", Refused::Party),
        ("iat", Refused::TooOld),
        ("verified", Refused::Claim),
        ("plan", Refused::Claim),
        ("user", Refused::Subject),
        ("org", Refused::Team),
        ("roles", Refused::Role),
    ] {
        rows.push(row(
            format!("no {name} where it is mapped"),
            Draft::secret().without(name).token(),
            reason,
        ));
    }
    // A name with a dot is no way around one that is asked for.
    let flat = Draft::secret()
        .without("org")
        .with_text("\"user\"", "\"org.team\":\"/acme\",\"user\"");
    rows.push(row("a claim named org.team", flat, Refused::Team));
    let named = |team: Value| {
        let draft =
            Draft::public("EdDSA", "x", By::Ed).claim("iss", "https://named.example.com".into());
        draft.claim("team", team).token()
    };
    for team in [
        json!("Acme"),
        json!("a b"),
        json!(""),
        json!("../acme"),
        json!("a/b"),
        json!("-acme"),
        json!("é"),
        json!("a\n"),
        json!("x".repeat(64)),
        json!(null),
        json!(7),
        json!(["a", "b"]),
        json!([]),
    ] {
        rows.push(row(
            format!("a team named {team}"),
            named(team),
            Refused::Team,
        ));
    }
    rows
}

#[tokio::test]
async fn no_hostile_token_is_taken() {
    let house = House::new().await;
    let tables = [
        malformed(),
        algorithms(),
        signatures(),
        headers(),
        registered(),
        mapped(),
    ];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    let tokens: BTreeSet<&str> = rows.iter().map(|row| row.token.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "each row has a name of its own");
    assert_eq!(tokens.len(), rows.len(), "no two rows are one token");
    assert!(rows.len() >= 300, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        // What was refused once is not known the second time.
        for _ in 0..2 {
            let said = house.ask(&row.token).await;
            if said != Err(row.reason) {
                wrong.push(format!(
                    "{}: {said:?} instead of {:?}",
                    row.name, row.reason
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // The same issuers take what is good: the rows fail for their own reasons.
    assert!(house.ask(&Draft::rsa().token()).await.is_ok());
    assert!(house.ask(&Draft::secret().token()).await.is_ok());
    assert!(house.ask(&token_by(1, "one", "two")).await.is_ok());
}

#[test]
fn every_reason_has_a_word_of_its_own() {
    let tables = [
        malformed(),
        algorithms(),
        signatures(),
        headers(),
        registered(),
        mapped(),
    ];
    let reasons: BTreeSet<Refused> = tables.iter().flatten().map(|row| row.reason).collect();
    let words: BTreeSet<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(words.len(), reasons.len());
    // Those that no token alone leads to are in `servers`.
    assert_eq!(words.len(), 23, "{words:?}");
}

fn truncate_one(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - 1);
}
