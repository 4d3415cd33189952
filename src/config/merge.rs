//! Several files as one tree. Pure.
//!
//! Maps merge key by key; anything else is replaced by what comes later; nothing (`null`, or a key
//! without a value) changes nothing. A map is never replaced by something that is none: one of the
//! two is of the wrong type and is reported by itself, in its own file.

use super::document::{Node, Value};

/// Both trees as one, where `later` wins. Associative; `null` is neutral.
pub(super) fn merge(earlier: Node, later: Node) -> Node {
    match (earlier.value, later.value) {
        (value, Value::Null) => Node {
            file: earlier.file,
            value,
        },
        (Value::Map(mut map), Value::Map(over)) => {
            for (key, node) in over {
                let node = match map.remove(&key) {
                    Some(under) => merge(under, node),
                    None => node,
                };
                map.insert(key, node);
            }
            Node {
                file: earlier.file,
                value: Value::Map(map),
            }
        }
        (map @ Value::Map(_), _) => Node {
            file: earlier.file,
            value: map,
        },
        (_, value) => Node {
            file: later.file,
            value,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn node(value: Value) -> Node {
        Node { file: 0, value }
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (0..4_i128).prop_map(Value::Integer),
            "[a-c]{0,2}".prop_map(Value::Text),
            Just(Value::List(Vec::new())),
        ]
        .prop_map(node);
        leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| node(Value::Map(map)))
        })
    }

    /// The leaves that a tree states, by path.
    fn leaves(node: &Node, path: &str, found: &mut BTreeMap<String, Value>) {
        match &node.value {
            Value::Null => {}
            Value::Map(map) => {
                for (key, node) in map {
                    leaves(node, &format!("{path}.{key}"), found);
                }
            }
            other => {
                found.insert(path.to_owned(), other.clone());
            }
        }
    }

    /// The same tree with other leaves.
    fn same_shape(tree: &Node) -> Node {
        node(match &tree.value {
            Value::Map(map) => Value::Map(
                map.iter()
                    .map(|(key, node)| (key.clone(), same_shape(node)))
                    .collect(),
            ),
            Value::Null => Value::Null,
            _ => Value::Text("later".to_owned()),
        })
    }

    proptest! {
        #[test]
        fn is_associative(a in any_node(), b in any_node(), c in any_node()) {
            let left = merge(merge(a.clone(), b.clone()), c.clone());
            prop_assert_eq!(left, merge(a, merge(b, c)));
        }

        #[test]
        fn nothing_is_neutral_and_twice_is_the_same(a in any_node()) {
            prop_assert_eq!(merge(a.clone(), node(Value::Null)), a.clone());
            prop_assert_eq!(merge(node(Value::Null), a.clone()), a.clone());
            prop_assert_eq!(merge(a.clone(), a.clone()), a);
        }

        #[test]
        fn later_wins_key_by_key(a in any_node()) {
            // No conflict of kinds: the later file has the shape of the earlier one.
            let later = same_shape(&a);
            let mut merged = BTreeMap::new();
            leaves(&merge(a, later), "", &mut merged);
            prop_assert!(merged.values().all(|value| *value == Value::Text("later".to_owned())));
        }

        #[test]
        fn every_leaf_comes_from_one_of_the_two(a in any_node(), b in any_node()) {
            let (mut ours, mut theirs, mut merged) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            leaves(&a, "", &mut ours);
            leaves(&b, "", &mut theirs);
            leaves(&merge(a, b), "", &mut merged);
            for (path, value) in merged {
                let expected = theirs.get(&path).or_else(|| ours.get(&path));
                prop_assert_eq!(Some(&value), expected);
            }
        }
    }
}
