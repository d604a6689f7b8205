//! Envelopes and bundles that are not what they seem (P5).

use super::fixture::{KEY, OTHER_KEY, Reader, TestSigner, sign_json, statement_json, variant};
use super::forgeries::{remove, rename};
use crate::Signer as _;
use crate::seal::seal_bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Changes a document; the second argument is another key's envelope of the same statement.
type Change = fn(&mut Value, &Value);

const ENVELOPE: &[(&str, &str, Change)] = &[
    ("payload type is the predicate type", "Envelope(PayloadType)", |e, _| {
        e["payloadType"] = json!("https://slsa.dev/provenance/v1");
    }),
    ("payload type text/plain", "Envelope(PayloadType)", |e, _| e["payloadType"] = json!("text/plain")),
    ("no payload type", "Envelope(Shape)", |e, _| drop(remove(e, "payloadType"))),
    ("no signature", "Envelope(Unsigned)", |e, _| e["signatures"] = json!([])),
    ("an extra signature", "Envelope(Signatures)", |e, other| {
        e["signatures"] = json!([e["signatures"][0], other["signatures"][0]]);
    }),
    ("the same signature twice", "Envelope(Signatures)", |e, _| {
        e["signatures"] = json!([e["signatures"][0], e["signatures"][0]]);
    }),
    ("an unknown field", "Envelope(Shape)", |e, _| e["signed"] = json!(true)),
    ("a null key id", "Envelope(Null)", |e, _| e["signatures"][0]["keyid"] = Value::Null),
    ("an unknown key id", "UntrustedKey", |e, _| e["signatures"][0]["keyid"] = json!("SHA256:x")),
    ("another key's signature under our key id", "Signature", |e, other| {
        e["signatures"][0]["sig"] = other["signatures"][0]["sig"].clone();
    }),
    ("an empty signature", "Signature", |e, _| e["signatures"][0]["sig"] = json!("")),
    ("url-safe base64", "Envelope(Base64)", |e, _| e["signatures"][0]["sig"] = json!("_-8=")),
    ("base64 without padding", "Envelope(Base64)", |e, _| e["signatures"][0]["sig"] = json!("AA")),
    ("base64 with spare bits", "Envelope(Base64)", |e, _| e["signatures"][0]["sig"] = json!("AB==")),
    ("base64 with a line feed", "Envelope(Base64)", |e, _| {
        e["payload"] = json!(format!("{}\n", e["payload"].as_str().unwrap()));
    }),
];

const BUNDLE: &[(&str, &str, Change)] = &[
    ("a bundle of version 0.2", "Envelope(MediaType)", |b, _| {
        b["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.2");
    }),
    ("a bundle with a key id", "Envelope(BundleKeyid)", |b, _| {
        b["dsseEnvelope"]["signatures"][0]["keyid"] = json!("x");
    }),
    ("a bundle with another hint", "UntrustedKey", |b, _| {
        b["verificationMaterial"]["publicKey"]["hint"] = json!("x");
    }),
    ("a bundle with an empty hint", "UntrustedKey", |b, _| {
        b["verificationMaterial"]["publicKey"]["hint"] = json!("");
    }),
    ("a bundle with a certificate", "Envelope(Shape)", |b, _| {
        b["verificationMaterial"]["certificate"] = json!({"rawBytes": "AA=="});
    }),
    ("a bundle with unchecked log entries", "Envelope(LogEntries)", |b, _| {
        b["verificationMaterial"]["tlogEntries"] = json!([{"logIndex": "1"}]);
    }),
    ("a bundle with a message signature", "Envelope(Shape)", |b, _| {
        rename(b, "dsseEnvelope", "messageSignature");
    }),
];

const OTHER: &[(&str, &str, Change)] = &[
    ("another key's signature", "UntrustedKey", |_e, _| {}),
    ("another key's signature without key id", "Signature", |e, _| {
        drop(remove(&mut e["signatures"][0], "keyid"));
    }),
];

fn refused(name: &str, expected: &str, text: &str) {
    let error = Reader::new().verify(text.as_bytes()).unwrap_err();
    assert_eq!(variant(&error), expected, "{name}");
}

#[test]
fn changed_envelopes_and_bundles_are_refused() {
    let sealed = sign_json(&statement_json());
    let envelope: Value = serde_json::from_str(&sealed.envelope_json_line).unwrap();
    let bundle: Value = serde_json::from_str(&sealed.bundle_json).unwrap();
    let statement = serde_json::to_vec(&statement_json()).unwrap();
    let other = seal_bytes(&statement, &TestSigner::new(OTHER_KEY)).unwrap();
    let other: Value = serde_json::from_str(&other.envelope_json_line).unwrap();
    for (table, base) in [(ENVELOPE, &envelope), (BUNDLE, &bundle), (OTHER, &other)] {
        for (name, expected, change) in table {
            let mut value = base.clone();
            change(&mut value, &other);
            refused(name, expected, &value.to_string());
        }
        println!("{} changes", table.len());
    }
}

#[test]
fn changed_text_is_refused() {
    let sealed = sign_json(&statement_json());
    let line = sealed.envelope_json_line.trim_end();
    let envelope: Value = serde_json::from_str(line).unwrap();
    let payload = envelope["payload"].as_str().unwrap();
    let twice = line.replacen('{', &format!("{{\"payload\":\"{payload}\","), 1);
    refused("duplicate payload", "Envelope(Json)", &twice);
    refused("two lines", "Envelope(Json)", &format!("{line}\n{line}\n"));
    refused("two line feeds", "Envelope(UnknownForm)", &format!("{line}\n\n"));
    refused("a space before", "Envelope(UnknownForm)", &format!(" {line}"));
    refused("nothing", "Envelope(UnknownForm)", "");
    refused("neither form", "Envelope(UnknownForm)", "{\"a\":1}");
    refused("a bare statement", "Envelope(UnknownForm)", &statement_json().to_string());
}

#[test]
fn signature_without_pae_or_over_another_type_is_refused() {
    let signer = TestSigner::new(KEY);
    let payload = serde_json::to_vec(&statement_json()).unwrap();
    let mut characters = format!("DSSEv1 28 {} {} ", crate::PAYLOAD_TYPE, payload.len() + 1).into_bytes();
    characters.extend_from_slice(&payload);
    let mut other_type = format!("DSSEv1 10 text/plain {} ", payload.len()).into_bytes();
    other_type.extend_from_slice(&payload);
    let base64_pae = crate::pae(STANDARD.encode(&payload).as_bytes());
    for (name, message) in
        [("no PAE", payload.clone()), ("length", characters), ("type", other_type), ("base64", base64_pae)]
    {
        let envelope = json!({"payload": STANDARD.encode(&payload), "payloadType": crate::PAYLOAD_TYPE,
            "signatures": [{"keyid": signer.key().fingerprint(), "sig": STANDARD.encode(signer.sign(&message).unwrap())}]});
        let error = Reader::new().verify(envelope.to_string().as_bytes()).unwrap_err();
        assert_eq!(variant(&error), "Signature", "{name}");
    }
}
