//! Tokens that are taken, and what becomes of their claims.

use std::collections::BTreeSet;

use serde_json::json;

use super::super::token;
use super::mint::{By, Draft, KEYS, NOW_S, fixture, raw};
use super::*;
use crate::model::grant::Scope;
use crate::model::principal::Proof;

/// Name, token, subject, team, role.
#[expect(clippy::too_many_lines, reason = "a table is as long as it is")]
fn rows() -> Vec<(&'static str, String, &'static str, &'static str, Role)> {
    let public = |alg, kid, by| Draft::public(alg, kid, by);
    let member = Role::Member;
    let somebody = |name, draft: Draft| (name, draft.token(), "somebody", "acme", member);
    let mapped = |name, draft: Draft, role| (name, draft.token(), "u-1", "acme", role);
    let rsa = Draft::rsa;
    let secret = Draft::secret;
    let iss =
        |draft: Draft, name: &str| draft.claim("iss", format!("https://{name}.example.com").into());
    let leeway = LEEWAY_S;
    vec![
        somebody("RS256", rsa()),
        somebody("ES256", public("ES256", "ec", By::Ec)),
        somebody("EdDSA", public("EdDSA", "ed", By::Ed)),
        somebody(
            "no kid where one key has the algorithm",
            rsa().without_header("kid"),
        ),
        somebody("no typ", rsa().without_header("typ")),
        somebody("typ in small letters", rsa().header("typ", "jwt".into())),
        somebody(
            "typ of an access token",
            rsa().header("typ", "at+jwt".into()),
        ),
        somebody(
            "typ in its long form",
            rsa().header("typ", "application/AT+JWT".into()),
        ),
        somebody(
            "a header that nobody knows",
            rsa().header("cat", "cl_B7d4".into()),
        ),
        somebody("a certificate's digest", rsa().header("x5t", "AAAA".into())),
        somebody(
            "one key in its file, whatever the kid",
            iss(rsa(), "pem").header("kid", "x".into()),
        ),
        somebody(
            "no audience where a party is asked for",
            iss(public("ES256", "x", By::Ec), "party")
                .without("aud")
                .claim("azp", "web".into()),
        ),
        somebody(
            "several audiences",
            rsa().claim("aud", json!(["a", "casemate", "b"])),
        ),
        somebody("no nbf", rsa().without("nbf")),
        somebody("no iat", rsa().without("iat")),
        somebody(
            "dates with fractions",
            rsa().claim("exp", json!(1_800_000_000.5)),
        ),
        somebody(
            "expired within the leeway",
            rsa().claim("exp", json!(NOW_S - leeway + 1)),
        ),
        somebody(
            "valid from soon on, within the leeway",
            rsa().claim("nbf", json!(NOW_S + leeway)),
        ),
        somebody(
            "issued soon, within the leeway",
            rsa().claim("iat", json!(NOW_S + leeway)),
        ),
        somebody(
            "a date of the year 9999",
            rsa().claim("exp", json!(253_402_300_799_i64)),
        ),
        (
            "blanks and lines in the JSON",
            raw(
                format!("{:#}", rsa().header),
                format!("\n{:#}\t\r\n", rsa().claims),
                &By::Rsa,
            ),
            "somebody",
            "acme",
            member,
        ),
        (
            "a subject as long as can be",
            rsa().claim("sub", "x".repeat(128).into()).token(),
            "",
            "acme",
            member,
        ),
        (
            "a subject with all that may be in it",
            rsa().claim("sub", "auth0|a:b@c/d~!\"\\'".into()).token(),
            "auth0|a:b@c/d~!\"\\'",
            "acme",
            member,
        ),
        (
            "a team by its name",
            iss(public("EdDSA", "x", By::Ed), "named")
                .claim("team", "blue".into())
                .token(),
            "somebody",
            "blue",
            member,
        ),
        (
            "a team in a list of one",
            iss(public("EdDSA", "x", By::Ed), "named")
                .claim("team", json!(["blue"]))
                .token(),
            "somebody",
            "blue",
            member,
        ),
        mapped("everything mapped", secret(), member),
        mapped(
            "two names of one team",
            secret().claim("org.team", json!(["/acme", "/acme-too", "/unknown"])),
            member,
        ),
        mapped(
            "the greater of two roles",
            secret().claim("roles", json!(["staff", "boss"])),
            Role::TeamAdmin,
        ),
        mapped(
            "an auditor",
            secret().claim("roles", json!(["inspector", "unknown"])),
            Role::Auditor,
        ),
        mapped(
            "a role in a text",
            secret().claim("roles", "boss".into()),
            Role::TeamAdmin,
        ),
        mapped(
            "another value that is right",
            secret().claim("plan.tier", "silver".into()),
            member,
        ),
        mapped(
            "the other party",
            secret().claim("azp", "cli".into()),
            member,
        ),
        mapped(
            "as old as can be",
            secret().claim("iat", json!(NOW_S - 3600 - leeway + 1)),
            member,
        ),
    ]
}

#[tokio::test]
async fn good_tokens_are_taken_for_whom_they_are_about() {
    let house = House::new().await;
    let rows = rows();
    let names: BTreeSet<_> = rows.iter().map(|row| row.0).collect();
    assert_eq!(names.len(), rows.len());
    for (name, token, subject, team, role) in rows {
        // The second time it is known.
        for _ in 0..2 {
            let client = house.ask(&token).await.expect(name);
            let Proof::Jwt { subject: found, .. } = &client.by else {
                panic!("{name}")
            };
            assert!(subject.is_empty() || subject == found, "{name}: {found}");
            assert_eq!(
                (client.team.as_str(), client.grant.role),
                (team, role),
                "{name}"
            );
            assert_eq!(client.session, None);
        }
    }
}

#[tokio::test]
async fn scopes_are_those_that_a_token_names_and_we_know() {
    let house = House::new().await;
    for (scope, expected) in [
        (
            json!("openid sessions:read profile"),
            vec![Scope::SessionsRead],
        ),
        (
            json!(["sessions:read sessions:use", "x"]),
            vec![Scope::SessionsRead, Scope::SessionsUse],
        ),
        (json!("Sessions:Read sessions:* admin"), vec![]),
        (json!(""), vec![]),
        (json!(null), vec![]),
    ] {
        let token = Draft::secret().claim("scope", scope.clone()).token();
        let grant = house.ask(&token).await.unwrap().grant;
        assert_eq!(
            grant.scopes,
            Some(expected.into_iter().collect()),
            "{scope}"
        );
    }
    let none = Draft::secret().without("scope").token();
    let grant = house.ask(&none).await.unwrap().grant;
    assert_eq!(
        grant.scopes,
        Some(BTreeSet::new()),
        "without the claim there is none"
    );
    let grant = house.ask(&Draft::rsa().token()).await.unwrap().grant;
    assert_eq!(grant.scopes, None, "nobody asked for scopes");
}

#[tokio::test]
async fn the_record_names_issuer_and_subject() {
    let house = House::new().await;
    let client = house.ask(&Draft::rsa().token()).await.unwrap();
    assert_eq!(client.by.to_string(), "jwt:public:somebody");
}

/// The examples of RFC 7515 appendix A and RFC 8037 appendix A.4.
#[test]
fn signatures_of_the_rfcs_are_verified() {
    use super::super::keys::{Key, KeySet};
    use crate::base::secret::Secret;
    for vector in fixture("rfc.json").as_array().unwrap() {
        let name = vector["key"].as_str().unwrap();
        let token = vector["token"].as_str().unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = token::decode(signature).unwrap();
        let set = if name == "hmac" {
            let key = Key::secret(&Secret::new(member("hmac", "k"))).unwrap();
            KeySet::one(key, &[Algorithm::Hs256].into()).unwrap()
        } else {
            let mut key = KEYS[name].clone();
            for private in ["d", "p", "q", "dp", "dq", "qi"] {
                key.as_object_mut().unwrap().remove(private);
            }
            let text = super::set(&[key.to_string()]);
            KeySet::from_jwks(text.as_bytes(), &crate::model::issuer::ALGORITHMS.into()).unwrap()
        };
        let algorithm = match name {
            "hmac" => Algorithm::Hs256,
            "rsa" => Algorithm::Rs256,
            "ec" => Algorithm::Es256,
            _ => Algorithm::EdDsa,
        };
        let key = set.choose(None, algorithm).unwrap();
        assert!(key.verifies(message.as_bytes(), &signature), "{vector}");
        assert!(!key.verifies(format!("{message}x").as_bytes(), &signature));
        // All but the last are tokens, of another time and for nobody.
        let is_token = name != "ed";
        assert_eq!(token::parse(token).is_ok(), is_token, "{vector}");
    }
}

#[tokio::test]
async fn a_known_token_ends_with_its_time_and_with_the_trust_in_its_issuer() {
    let house = House::new().await;
    let token = raw(
        json!({"alg": "RS256", "kid": "rsa"}).to_string(),
        Draft::rsa().claim("nbf", json!(NOW_S)).claims.to_string(),
        &By::Rsa,
    );
    let ask = |seconds| house.tokens.authenticate(&token, after(seconds));
    assert!(ask(0).await.is_ok());
    assert!(ask(300 + LEEWAY_S - 1).await.is_ok());
    assert_eq!(ask(300 + LEEWAY_S).await, Err(Refused::Expired));
    // Also for a clock that is set back.
    assert_eq!(ask(-LEEWAY_S - 1).await, Err(Refused::Early));
    assert!(ask(0).await.is_ok());
    let trusted = house.tokens.prepare(Vec::new(), now()).await.unwrap();
    house.tokens.trust(trusted);
    assert_eq!(ask(0).await, Err(Refused::Issuer));
}
