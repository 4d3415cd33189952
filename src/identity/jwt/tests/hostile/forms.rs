//! Texts that are no token, or no longer one, and headers that want more than we give.
#![expect(clippy::too_many_lines, reason = "a table is as long as it is")]

use serde_json::{Value, json};

use super::super::super::MAX_TOKEN_BYTES;
use super::super::mint::{By, Draft, raw};
use super::*;

fn header() -> String {
    rsa().header.to_string()
}

fn claims() -> String {
    rsa().claims.to_string()
}

/// What is no token, or no longer one.
pub(super) fn malformed() -> Vec<Row> {
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

/// Headers that want more than we give.
pub(super) fn headers() -> Vec<Row> {
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
