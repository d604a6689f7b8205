//! The published schemas, held against what is emitted, by a validator that knows only the keywords they use.

use serde_json::Value;

pub(super) const RUN: &str = include_str!("../../../../docs/schema/run-attestation.schema.json");
const PROVENANCE_PAGE: &str = include_str!("../../../../docs/provenance.md");
const RUN_PAGE: &str = include_str!("../../../../docs/run-attestation.md");

/// Every broken rule of a schema, as a path and the keyword.
pub(super) fn broken(schema: &Value, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    check(schema, schema, value, "", &mut out);
    out
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    let rules = schema.as_object().unwrap();
    for (keyword, rule) in rules {
        let ok = match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let target = root.pointer(rule.as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
                check(root, target, value, at, out);
                true
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                other => panic!("type {other}"),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "required" => {
                rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "oneOf" => {
                let fits = |rule: &&Value| {
                    let mut broken = Vec::new();
                    check(root, rule, value, at, &mut broken);
                    broken.is_empty()
                };
                rule.as_array().unwrap().iter().filter(fits).count() == 1
            }
            "minItems" => value.as_array().is_none_or(|v| v.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|v| v.len() as u64 <= rule.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|v| v.len() as u64 >= rule.as_u64().unwrap()),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}/{i}"), out);
                }
                true
            }
            "properties" | "patternProperties" => true,
            "additionalProperties" => {
                assert_eq!(rule, &Value::Bool(false));
                properties(root, rules, value, at, out)
            }
            other => panic!("keyword {other}"),
        };
        if !ok {
            out.push(format!("{at}: {keyword}"));
        }
    }
}

fn properties(
    root: &Value,
    rules: &serde_json::Map<String, Value>,
    value: &Value,
    at: &str,
    out: &mut Vec<String>,
) -> bool {
    let mut all_known = true;
    for (name, item) in value.as_object().into_iter().flatten() {
        let named = rules.get("properties").and_then(|p| p.get(name));
        let mut patterns = rules.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
        let rule = named.or_else(|| patterns.find(|(p, _)| matches(p, name)).map(|(_, rule)| rule));
        match rule {
            Some(rule) => check(root, rule, item, &format!("{at}/{name}"), out),
            None => all_known = false,
        }
    }
    all_known
}

/// The patterns that the schemas use, each with the same rule in code.
fn matches(pattern: &str, text: &str) -> bool {
    let hex = |t: &str| t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let name = |t: &str| ampoule_spec::Name::parse(t).is_ok();
    let log = |t: &str| {
        let stem = t.strip_suffix(".stdout").or_else(|| t.strip_suffix(".stderr"));
        stem.and_then(|s| s.split_once('-')).is_some_and(|(n, step)| {
            (1..=3).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()) && name(step)
        })
    };
    let alphabet = |t: &str, more: &[u8]| t.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    let https = |t: &str, end: &str| {
        let base = t.strip_prefix("https://").and_then(|t| t.strip_suffix(end));
        base.is_some_and(|b| {
            !b.is_empty() && alphabet(b, b".:/_-") && !b.bytes().any(|b| b.is_ascii_uppercase())
        })
    };
    match pattern {
        "^[0-9a-f]{64}$" => text.len() == 64 && hex(text),
        "^[0-9a-f]{40}$" => text.len() == 40 && hex(text),
        "^(0|[1-9][0-9]{0,19})$" => text.parse::<u64>().is_ok_and(|n| n.to_string() == text),
        "^(0|-?[1-9][0-9]{0,9})$" => text.parse::<i32>().is_ok_and(|n| n.to_string() == text),
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?Z$" => {
            crate::time::parse(text).is_some()
        }
        "^[a-z0-9][a-z0-9-]{0,63}$" => name(text),
        "^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$" => {
            (1..=128).contains(&text.len())
                && text.as_bytes()[0].is_ascii_alphanumeric()
                && alphabet(text, b"._+-")
        }
        "^[A-Za-z_][A-Za-z0-9_]{0,127}$" => ampoule_spec::EnvName::parse(text).is_ok(),
        "^/" => text.starts_with('/'),
        "^.+$" => !text.is_empty() && !text.contains('\n'),
        "^https://" => text.starts_with("https://"),
        "^[0-9]{1,3}-[a-z0-9][a-z0-9-]{0,63}\\.(stdout|stderr)$" => log(text),
        "^(report\\.json|[0-9]{1,3}-[a-z0-9][a-z0-9-]{0,63}\\.(stdout|stderr))$" => {
            text == "report.json" || log(text)
        }
        "^https://[a-z0-9.:/_-]+/builders/(hermetic|host|dev)/v1$" => {
            ["hermetic", "host", "dev"].iter().any(|mode| https(text, &format!("/builders/{mode}/v1")))
        }
        "^https://[a-z0-9.:/_-]+/attestation/run/v1$" => https(text, "/attestation/run/v1"),
        "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$" => {
            text.strip_prefix("urn:uuid:").is_some_and(|id| ampoule_spec::JobId::parse(id).is_ok())
        }
        other => panic!("pattern {other}"),
    }
}

/// The n-th JSON block of a page.
fn block_of(page: &str, at: usize) -> Value {
    let body = page.split("```json\n").nth(at + 1).unwrap().split("```").next().unwrap();
    serde_json::from_str(body).unwrap()
}

/// The n-th JSON block of the page on the build type.
pub(super) fn block(at: usize) -> Value {
    block_of(PROVENANCE_PAGE, at)
}

#[test]
fn parameters_fit_the_schemas_of_their_page_and_its_example_is_the_golden_one() {
    let statement = super::fixture::statement_json();
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(broken(&block(0), &definition["externalParameters"]), Vec::<String>::new());
    assert_eq!(broken(&block(1), &definition["internalParameters"]), Vec::<String>::new());
    assert_eq!(block(2), *definition);
    let mut more = definition["externalParameters"].clone();
    more["privileged"] = Value::Bool(true);
    assert_eq!(broken(&block(0), &more), [": additionalProperties"]);
}

#[test]
fn whole_examples_of_the_pages_are_the_golden_statements() {
    let mut provenance = super::fixture::statement_json();
    provenance["predicate"]["buildDefinition"] = Value::from("(as above)");
    assert_eq!(block(3), provenance);
    let golden: Value = serde_json::from_str(include_str!("../../testdata/golden/run.json")).unwrap();
    assert_eq!(block_of(RUN_PAGE, 0), golden);
}

#[test]
fn every_object_of_the_schemas_is_closed() {
    fn walk(schema: &Value, at: &str) {
        if schema.get("type").is_some_and(|t| t == "object") {
            assert_eq!(schema["additionalProperties"], Value::Bool(false), "{at}");
        }
        match schema {
            Value::Object(map) => map.iter().for_each(|(name, s)| walk(s, &format!("{at}/{name}"))),
            Value::Array(items) => items.iter().for_each(|s| walk(s, at)),
            _ => {}
        }
    }
    for schema in [serde_json::from_str(RUN).unwrap(), block(0), block(1)] {
        walk(&schema, "");
    }
}
