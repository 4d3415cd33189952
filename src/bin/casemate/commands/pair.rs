//! `k=v` on the command line.

use std::collections::BTreeMap;

use crate::failure::Failure;

/// Reads `k=v`; the value may be empty, the key may not.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as k=v".to_owned()),
    }
}

/// A variable for a program: `K=V`, or `K` for the value that casemate's own environment has.
///
/// The second form keeps the value out of the process list.
#[derive(Clone)]
pub struct Variable {
    name: String,
    value: Option<String>,
}

/// Reads `K=V` or `K`.
pub fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("write it as K=V, or K to hand on the value of this environment".to_owned());
    }
    let name = name.to_owned();
    Ok(Variable { name, value })
}

/// The variables with their values; of one name the last counts.
pub fn environment(
    variables: Vec<Variable>,
    own: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut environment = BTreeMap::new();
    for Variable { name, value } in variables {
        let value = value.or_else(|| own(&name)).ok_or_else(|| {
            Failure::usage(format!(
                "--env {name}: this environment has no {name} to hand on (or it is not UTF-8); write --env {name}=VALUE"
            ))
        })?;
        environment.insert(name, value);
    }
    Ok(environment)
}

/// A variable of casemate's own environment.
pub fn own(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_cut_at_its_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
        assert!(pair("=b").is_err());
    }

    #[test]
    fn a_bare_name_hands_the_own_value_on() {
        let variables = vec![
            variable("A=1").unwrap(),
            variable("B").unwrap(),
            variable("A=2").unwrap(),
        ];
        let own = |name: &str| (name == "B").then(|| "b".to_owned());
        let found = environment(variables, own).unwrap();
        assert_eq!(found["A"], "2");
        assert_eq!(found["B"], "b");
        let missing = environment(vec![variable("C").unwrap()], own).unwrap_err();
        assert!(missing.message.contains("no C to hand on"));
        assert!(variable("=x").is_err());
    }
}
