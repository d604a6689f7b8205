use super::*;
use std::time::Instant;

/// What comes out of a stream that is written in these pieces.
fn masked(matcher: &Matcher, pieces: &[&[u8]]) -> (Vec<u8>, u64) {
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    for piece in pieces {
        stream.feed(matcher, piece, &mut out);
    }
    stream.finish(&mut out);
    (out, stream.masked)
}

fn matcher(values: &[&[u8]]) -> Matcher {
    Matcher::new(&values.iter().map(|value| value.to_vec()).collect::<Vec<_>>()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Base64 by the book (RFC 4648), not by our own code.
fn base64(bytes: &[u8], url: bool, pad: bool) -> String {
    let more = if url { "-_" } else { "+/" };
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(more.chars()).collect();
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let digit = |six: &[u8]| {
        let text = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        alphabet[usize::from_str_radix(&text, 2).unwrap()]
    };
    let mut out: String = bits.as_bytes().chunks(6).map(digit).collect();
    while pad && !out.len().is_multiple_of(4) {
        out.push('=');
    }
    out
}

const SECRET: &str = "s3cr3t/Va\"l ue+with?sp\\ecial'ch&rs~é=";

fn encodings() -> Vec<(&'static str, String)> {
    let all = |byte: u8| format!("%{byte:02X}");
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let url: String =
        SECRET.bytes().map(|b| if unreserved(b) { char::from(b).to_string() } else { all(b) }).collect();
    let once = base64(SECRET.as_bytes(), false, true);
    let json = serde_json::to_string(SECRET).unwrap();
    vec![
        ("raw", SECRET.to_owned()),
        ("base64", once.clone()),
        ("base64 after one byte", base64(format!("x{SECRET}").as_bytes(), false, false)),
        ("base64 after two bytes", base64(format!("u:{SECRET}").as_bytes(), false, true)),
        ("base64url", base64(SECRET.as_bytes(), true, false)),
        ("base64 twice", base64(format!("{once}\n").as_bytes(), false, true)),
        ("hex", hex(SECRET.as_bytes())),
        ("HEX", hex(SECRET.as_bytes()).to_uppercase()),
        ("url", url.clone()),
        ("json", json[1..json.len() - 1].to_owned()),
        ("shell", SECRET.replace('\'', r"'\''")),
        ("reversed", SECRET.chars().rev().collect()),
    ]
}

/// The longest run of an encoding's bytes that stands in what came out.
fn leaked(encoding: &[u8], out: &[u8]) -> usize {
    let stands = |count: usize| encoding.windows(count).any(|run| out.windows(count).any(|w| w == run));
    (1..=encoding.len()).take_while(|count| stands(*count)).last().unwrap_or(0)
}

#[test]
fn twelve_encodings_split_at_each_byte_of_two_streams_leak_nothing() {
    let matcher = matcher(&[b"another-secret", SECRET.as_bytes()]);
    let encodings = encodings();
    assert_eq!(encodings.len(), 12);
    let mut tried = 0;
    for (name, encoding) in &encodings {
        let text = [b"before <", encoding.as_bytes(), b"> after"].concat();
        for cut in 0..=text.len() {
            // Two streams that are written in turns have nothing to do with each other.
            let (mut streams, mut outs) = ([Stream::default(), Stream::default()], [Vec::new(), Vec::new()]);
            for piece in [&text[..cut], &text[cut..]] {
                for (stream, out) in streams.iter_mut().zip(&mut outs) {
                    stream.feed(&matcher, piece, out);
                }
            }
            for (stream, out) in streams.iter_mut().zip(&mut outs) {
                stream.finish(out);
                // A digit or two of base64 are of a byte before the secret, or of one behind it, too.
                let leak = leaked(encoding.as_bytes(), out);
                assert!(leak <= 3, "{name} cut at {cut}: {leak} in {}", String::from_utf8_lossy(out));
                assert!(out.starts_with(b"before <") && out.ends_with(b"> after"));
                assert_eq!(stream.masked, 1, "{name} cut at {cut}");
                tried += 1;
            }
        }
    }
    assert!(tried > 1000);
}

#[test]
fn every_byte_alone_is_masked_and_counted_too() {
    let matcher = matcher(&[SECRET.as_bytes()]);
    for (name, encoding) in encodings() {
        let text = format!("<{encoding}> and <{encoding}>");
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        let (out, count) = masked(&matcher, &pieces);
        assert!(leaked(encoding.as_bytes(), &out) <= 3, "{name}: {}", String::from_utf8_lossy(&out));
        assert_eq!(count, 2, "{name}");
    }
}

#[test]
fn what_is_no_secret_passes_at_once_and_unchanged() {
    let matcher = matcher(&[b"correct-horse"]);
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    stream.feed(&matcher, b"a line of a build\n", &mut out);
    assert_eq!(out, b"a line of a build\n", "nothing of it begins a secret");
    stream.feed(&matcher, b"prompt: correct", &mut out);
    assert!(out.ends_with(b"prompt: "), "only what may begin one is held back");
    stream.feed(&matcher, b"ion", &mut out);
    assert!(out.ends_with(b"prompt: correction"), "it has become another word");
    stream.feed(&matcher, b" corr", &mut out);
    assert!(!out.ends_with(b"corr"));
    stream.finish(&mut out);
    assert!(out.ends_with(b" corr"), "at the end of the stream it is no secret");
    assert_eq!(stream.masked, 0);
}

#[test]
fn secrets_within_secrets_and_beside_each_other_are_masked_whole() {
    let matcher = matcher(&[b"abcdefgh", b"abcdefgh12345678", b"5678-tail-of-it"]);
    for cut in 0..28 {
        let text = b"x abcdefgh12345678-tail-of-it y";
        let (out, count) = masked(&matcher, &[&text[..cut], &text[cut..]]);
        assert_eq!((out.as_slice(), count), (&b"x *** y"[..], 1), "cut at {cut}");
    }
    assert_eq!(masked(&matcher, &[b"abcdefghabcdefgh"]).0, b"******");
    assert_eq!(masked(&matcher, &[b"abcdefgh123"]).0, b"***123");
}

#[test]
fn lines_of_a_value_are_masked_one_by_one() {
    let key = b"-----BEGIN KEY-----\nMIIEvgIBADANBgkq\r\nhkiG9w0BAQEFAASC\n-----END KEY-----\n";
    let matcher = matcher(&[key]);
    assert_eq!(masked(&matcher, &[b"| MIIEvgIBADANBgkq |"]).0, b"| *** |");
    assert_eq!(masked(&matcher, &[key]).1, 1);
    assert_eq!(masked(&matcher, &[b"hkiG9w0BAQEFAASC\r\n"]).0, b"***\r\n");
}

#[test]
fn short_values_are_refused_and_values_that_repeat_themselves_are_bounded() {
    assert!(matches!(Matcher::new(&[b"1234567".to_vec()]), Err(MaskError::TooShort)));
    assert!(matches!(Matcher::new(&[b"1234567\n\n".to_vec()]), Err(MaskError::TooShort)));
    let matcher = matcher(&[&[b'a'; 60_000]]);
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    for _ in 0..64 {
        stream.feed(&matcher, &[b'a'; 32 << 10], &mut out);
        assert!(stream.candidates.len() <= CANDIDATES_MAX && stream.held.len() <= 1 << 20);
    }
    stream.feed(&matcher, b"b", &mut out);
    stream.finish(&mut out);
    assert!(!out.contains(&b'a') || out.iter().filter(|byte| **byte == b'a').count() < 60_000);
}

#[test]
fn values_that_are_added_are_masked_from_then_on_beside_the_old_ones() {
    let mut matcher = matcher(&[b"the-old-value"]);
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    stream.feed(&matcher, b"the-old-va", &mut out);
    matcher.add(&[b"the-new-value".to_vec()]).unwrap();
    stream.resume(&matcher);
    stream.feed(&matcher, b"lue the-new-value the-o", &mut out);
    stream.resume(&matcher);
    stream.feed(&matcher, b"ld-value", &mut out);
    stream.finish(&mut out);
    assert_eq!(out, b"*** *** ***");
}

/// `cargo test --release -p ampoule-runner mask::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let values: Vec<Vec<u8>> = (0..8_u32)
        .map(|at| format!("hvs.CAESI{at}Jq7xK2vP9mN4wR8tY{}zL5bD3fG", hex(&[at as u8; 4])).into_bytes())
        .collect();
    let matcher = Matcher::new(&values).unwrap();
    let line =
        b"[ 42%] Building C object CMakeFiles/zlib.dir/inflate.c.o: cc -O2 -Wall -c inflate.c (0x7ffd3a2b)\n";
    let text: Vec<u8> = line.iter().copied().cycle().take(32 << 10).collect();
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    let begun = Instant::now();
    let rounds = 16 << 10;
    for _ in 0..rounds {
        out.clear();
        stream.feed(&matcher, &text, &mut out);
    }
    let megabytes = f64::from(rounds) * text.len() as f64 / 1e6;
    println!("{} forms, {:.0} MB/s", matcher.forms.len(), megabytes / begun.elapsed().as_secs_f64());
}
