use super::*;
use ampoule_proto::v1 as wire;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

fn schema() -> Schema {
    Schema::read(&[ampoule_proto::FILE_DESCRIPTOR_SET]).unwrap()
}

fn verdict(bytes: &[u8]) -> Result<()> {
    let schema = schema();
    check(&schema, schema.methods["ampoule.v1.JobService/SubmitJob"].input, bytes)
}

fn request() -> wire::SubmitJobRequest {
    let step = wire::Step {
        name: "a".into(),
        run: vec!["true".into(), "x".into()],
        env: [("A".into(), "1".into()), ("B".into(), String::new())].into(),
        ..Default::default()
    };
    let job = wire::JobRequest {
        image: Some(wire::Image { kind: Some(wire::image::Kind::Host(wire::HostImage {})) }),
        params: [("p".into(), wire::ParamValue { kind: Some(wire::param_value::Kind::IntegerValue(-1)) })]
            .into(),
        steps: vec![step.clone(), step],
        limits: Some(wire::LimitsRequest { pids: Some(0), ..Default::default() }),
        ..Default::default()
    };
    wire::SubmitJobRequest {
        idempotency_key: "k".into(),
        job: Some(job),
        labels: [("l".into(), "v".into())].into(),
        ..Default::default()
    }
}

fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

#[test]
fn what_our_encoder_writes_is_taken() {
    verdict(&request().encode_to_vec()).unwrap();
    verdict(&[]).unwrap();
    let schema = schema();
    let list = wire::ListJobsRequest { states: vec![1, 2, 5], ..Default::default() };
    check(&schema, schema.methods["ampoule.v1.JobService/ListJobs"].input, &list.encode_to_vec()).unwrap();
}

#[test]
fn what_two_readers_could_see_differently_is_refused() {
    let good = request().encode_to_vec();
    let with = |more: &[u8]| [good.as_slice(), more].concat();
    let job = |more: &[u8]| field(3, more);
    let entry = |key: &str, value: &str| [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an unknown field", with(&field(99, b"x")), "(message)"),
        ("an unknown field, deep", job(&field(5, &field(9, b""))), "job.image"),
        (
            "an unknown field in a step",
            job(&[field(10, b""), field(10, &field(77, b""))].concat()),
            "job.steps[1]",
        ),
        ("a field twice", with(&field(1, b"other")), "idempotency_key"),
        ("a message twice", with(&job(b"")), "job"),
        ("two of a oneof", job(&field(5, &[field(1, b""), field(2, b"")].concat())), "job.image.oci"),
        (
            "a key twice",
            job(&[field(7, &entry("A", "1")), field(7, &entry("A", "2"))].concat()),
            "job.env[1]",
        ),
        ("a default key twice", job(&[field(7, b""), field(7, &field(1, b""))].concat()), "job.env[1]"),
        ("two values of a key", job(&field(7, &[entry("A", "1"), field(2, b"2")].concat())), "job.env[0]"),
        ("another wire type", field(4, b"\x01"), "priority"),
        ("text as a number", vec![0x08, 1], "idempotency_key"),
        ("not UTF-8", field(1, b"\xff"), "idempotency_key"),
        ("a group", vec![0x0b, 0x0c], "idempotency_key"),
        ("cut short", good[..good.len() - 1].to_vec(), "labels[0]"),
        ("a field of number 0", vec![0x02, 0x00], "(message)"),
        ("a varint of eleven bytes", [vec![0x20], vec![0xff; 11]].concat(), "priority"),
        ("a length beyond the end", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "idempotency_key"),
    ];
    for (what, bytes, at) in cases {
        let error = verdict(&bytes).expect_err(what);
        assert!(error.field.starts_with(at), "{what}: {error}");
    }
}

#[test]
fn depth_is_bounded_without_recursion_of_the_schema() {
    // A schema of its own that recurses: a message in itself. Ours has none, and must not need one to be safe.
    let mut schema = Schema::default();
    let own = Field { name: "a".into(), kind: Kind::Message(0), repeated: false, oneof: None };
    schema.messages.push(MessageType { fields: [(1, own)].into(), is_entry: false });
    let mut bytes = Vec::new();
    for _ in 0..DEPTH_MAX {
        bytes = field(1, &bytes);
    }
    check(&schema, 0, &bytes).unwrap();
    let mut deep = bytes;
    for _ in 0..100_000 / 4 {
        deep = field(1, &deep);
        if deep.len() > 60_000 {
            break;
        }
    }
    assert!(check(&schema, 0, &deep).unwrap_err().reason.contains("deep"));
}

proptest! {
    /// What is taken, prost decodes, and every reader that keeps to the schema sees the same.
    #[test]
    fn what_is_taken_is_decoded_and_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if verdict(&bytes).is_ok() {
            prop_assert!(wire::SubmitJobRequest::decode(bytes.as_slice()).is_ok());
        }
    }

    #[test]
    fn changed_requests_are_refused_or_decoded(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = request().encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if verdict(&bytes).is_ok() {
            let decoded = wire::SubmitJobRequest::decode(bytes.as_slice());
            prop_assert!(decoded.is_ok(), "{decoded:?}");
        }
    }
}
