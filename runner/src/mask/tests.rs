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
    try_matcher(values).unwrap()
}

fn try_matcher(values: &[&[u8]]) -> Result<Matcher, MaskError> {
    Matcher::new(Purpose::Log, &all(values))
}

fn all(values: &[&[u8]]) -> Values {
    Values::new(values.iter().map(|value| value.to_vec()).collect())
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
fn short_values_are_refused_whatever_blanks_follow() {
    assert!(matches!(try_matcher(&[b"1234567"]), Err(MaskError::TooShort)));
    assert!(matches!(try_matcher(&[b"1234567\n\n"]), Err(MaskError::TooShort)));
    assert!(try_matcher(&[b"12345678\n\n"]).is_ok());
}

/// What should come out: every place of every form in the whole text, found one by one.
fn by_the_book(matcher: &Matcher, text: &[u8]) -> Vec<u8> {
    let mut spans = Vec::new();
    for form in &matcher.forms {
        let (mut bytes, mut place) = (Vec::new(), 0);
        while bytes.len() < form.bytes as usize {
            let (part, next) = matcher.part(*form, place);
            bytes.extend_from_slice(part.bytes());
            place = next;
        }
        let places = text.windows(bytes.len()).enumerate().filter(|(_, there)| *there == bytes);
        spans.extend(places.map(|(at, _)| (at, at + bytes.len())));
    }
    spans.sort_unstable();
    let (mut out, mut to) = (Vec::new(), 0);
    for (start, end) in spans {
        if start >= to {
            out.extend_from_slice(&text[to..start]);
            out.extend_from_slice(MASK);
        }
        to = to.max(end);
    }
    out.extend_from_slice(&text[to..]);
    out
}

#[test]
fn pieces_of_any_length_give_what_the_whole_text_gives() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let mut masks = 0;
    for round in 0..150 {
        // Few different bytes: values begin within each other and within themselves.
        let letters = 2 + round % 3;
        let mut word = |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| b"ab\nc"[random(letters)]).collect() };
        let mut values: Vec<Vec<u8>> = (0..3).map(|at| word(8 + at * 5)).collect();
        values.retain(|value| value.trim_ascii_end().len() >= SECRET_BYTES_MIN);
        let mut text = word(150);
        for value in values.clone() {
            text.extend(value);
            text.extend(word(round % 7));
        }
        let matcher = matcher(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (mut stream, mut out, mut rest) = (Stream::default(), Vec::new(), text.as_slice());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(rest.len().min(1 + random(1 + round % 40)));
            stream.feed(&matcher, piece, &mut out);
            rest = left;
        }
        stream.finish(&mut out);
        let expected = by_the_book(&matcher, &text);
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected), "round {round}");
        masks += stream.masked;
    }
    assert!(masks > 300, "{masks}");
}

#[test]
fn value_that_repeats_itself_comes_out_in_no_part_and_what_is_held_is_bounded() {
    // More beginnings than are followed: at each byte one, or one every 64.
    let blocks: Vec<u8> = (0..60_000_u32).map(|at| if at % 48 == 0 { b'#' } else { b'a' }).collect();
    for value in [vec![b'a'; 60_000], blocks] {
        let matcher = matcher(&[&value]);
        // From the first byte, from the middle, and with other bytes before and after it.
        for skipped in [0, 1, 100, 30_000] {
            let mut text = vec![b'.'; 100];
            text.extend(value.iter().cycle().skip(skipped).take(200_000));
            text.extend_from_slice(b"|after");
            let (mut stream, mut out) = (Stream::default(), Vec::new());
            for piece in text.chunks(32 << 10) {
                stream.feed(&matcher, piece, &mut out);
                assert!(stream.candidates.len() <= CANDIDATES_MAX && stream.held.len() <= 1 << 20);
            }
            stream.feed(&matcher, &[b'.'; 70_000], &mut out);
            stream.finish(&mut out);
            let left = out.iter().filter(|byte| **byte == b'a').count();
            // No whole value begins in what is before the first of its beginnings.
            assert!(left <= 48, "{left} bytes came out, {skipped} skipped");
            assert!(out.starts_with(b"....") && out.ends_with(b"...."), "the rest has come out");
            assert!(stream.masked > 0);
        }
    }
}

#[test]
fn fields_of_an_answer_are_masked_like_secrets_of_their_own() {
    let key = "-----BEGIN KEY-----\nMIIEvgIBADANBgkq\nhkiG9w==\n-----END KEY-----\n";
    let inner = serde_json::json!({"token": "inner-Tk7pQ2wX"}).to_string();
    let answer = serde_json::json!({
        "username": "deploy-bot-1", "password": "Tr0ub4dor&3\"x", "pin": "1234567", "port": 8200,
        "account": 123_456_789_012_u64, "list": ["first-item-Zx9", {"deep": [[["deepest-Yw8v"]]]}],
        "key": key, "config": inner, "text": "päßwörter",
    });
    for value in [answer.to_string(), serde_json::to_string_pretty(&answer).unwrap() + "\n"] {
        let matcher = matcher(&[value.as_bytes()]);
        let fields = [
            "deploy-bot-1",
            "Tr0ub4dor&3\"x",
            "123456789012",
            "first-item-Zx9",
            "deepest-Yw8v",
            "inner-Tk7pQ2wX",
            "päßwörter",
        ];
        for field in fields {
            let encoded = [
                field.to_owned(),
                base64(field.as_bytes(), false, true),
                base64(format!("u:{field}").as_bytes(), false, true),
                base64(base64(field.as_bytes(), false, true).as_bytes(), false, true),
                hex(field.as_bytes()),
                field.chars().rev().collect(),
                serde_json::to_string(field).unwrap().trim_matches('"').to_owned(),
            ];
            for encoded in encoded {
                let (out, count) = masked(&matcher, &[b"<", encoded.as_bytes(), b">"]);
                assert_eq!(count, 1, "{field} as {encoded}: {}", String::from_utf8_lossy(&out));
                assert!(leaked(encoded.as_bytes(), &out) <= 3, "{field} as {encoded}");
            }
        }
        for part in [key, "MIIEvgIBADANBgkq", "MIIEvgIBADANBgkqhkiG9w==", &value] {
            assert_eq!(masked(&matcher, &[b"<", part.as_bytes(), b">"]), (b"<***>".to_vec(), 1), "{part}");
        }
        // Names, and what is too short by itself.
        for plain in ["<username>", "<password>", "<1234567>", "<8200>", "<hkiG9w==>"] {
            let (out, _) = masked(&matcher, &[plain.as_bytes()]);
            assert!(out == plain.as_bytes() || plain.contains("hki"), "{plain}");
        }
    }
}

#[test]
fn what_only_looks_like_json_hides_nothing_and_costs_nothing() {
    for odd in
        ["{\"", "[", "{}", "{\"a\":\"", "[\"abcdefgh", "{\"\\", "[\"\\\"]", "{\"a\\\"b\":\"12345678\\\"}"]
    {
        let value = format!("{odd}-with-a-tail-that-is-long]");
        assert_eq!(masked(&matcher(&[value.as_bytes()]), &[value.as_bytes()]).1, 1, "{odd}");
    }
    let deep = "[".repeat(30_000) + "\"innermost-value\"" + &"]".repeat(30_000);
    let matcher = matcher(&[deep.as_bytes()]);
    assert_eq!(masked(&matcher, &[b"<innermost-value>"]).0, b"<***>");
}

#[test]
fn lines_have_encodings_and_can_be_joined() {
    let lines = ["-----BEGIN KEY-----", "MIIEvgIBADANBgkq", "hkiG9w0BAQEFAASC", "AQ==", "-----END KEY-----"];
    let value = lines.join("\n") + "\n";
    let matcher = matcher(&[value.as_bytes()]);
    let line = lines[1].as_bytes();
    let mut shown = vec![base64(line, false, true), hex(line), hex(line).to_uppercase()];
    for joint in ["\r\n", "\\n", " ", ""] {
        shown.extend([lines.join(joint), base64(lines.join(joint).as_bytes(), false, true)]);
    }
    shown.extend([lines[1..4].concat(), hex(lines[1..4].concat().as_bytes())]);
    for shown in shown {
        let (out, count) = masked(&matcher, &[b"<", shown.as_bytes(), b">"]);
        assert_eq!((out.as_slice(), count), (&b"<***>"[..], 1), "{shown}");
    }
    // With ends of its own, the other way round.
    let windows = self::matcher(&[lines.join("\r\n").as_bytes()]);
    assert_eq!(masked(&windows, &[base64(lines.join("\n").as_bytes(), false, false).as_bytes()]).1, 1);
}

#[test]
fn value_with_blanks_around_it_is_masked_without_them() {
    let matcher = matcher(&[b"  \tin-between-Kq7\n"]);
    for text in ["<in-between-Kq7>", "<  \tin-between-Kq7>"] {
        assert_eq!(masked(&matcher, &[text.as_bytes()]).0, b"<***>", "{text:?}");
    }
    let twice = base64(base64(b"in-between-Kq7", false, true).as_bytes(), false, true);
    assert_eq!(masked(&matcher, &[twice.as_bytes()]).1, 1);
}

#[test]
fn json_of_every_library_is_masked_whole() {
    let matcher = matcher(&["a+b&c<d>\"e'f`é\u{7f}/\\\n\u{1}gh".as_bytes()]);
    for written in [
        r#"a+b&c<d>\"e'f`é/\\\n\u0001gh"#,
        r#"a+b\u0026c\u003cd\u003e\"e'f`é/\\\n\u0001gh"#,
        r#"a+b&c<d>\"e'f`\u00e9\/\\\n\u0001gh"#,
        r#"a\u002Bb\u0026c\u003Cd\u003E\u0022e\u0027f\u0060\u00E9\u007F/\\\n\u0001gh"#,
    ] {
        // DEL is written as it is by all but the last.
        let written = written.replacen("é/", "é\u{7f}/", 1).replacen("e9\\/", "e9\u{7f}\\/", 1);
        assert_eq!(masked(&matcher, &[written.as_bytes()]).0, b"***", "{written}");
    }
}

/// Lines that begin alike, of which some begin with others.
fn alike(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("    export VARIABLE_{at}")).collect()
}

#[test]
fn forms_that_begin_alike_are_told_apart_in_pieces_of_any_length() {
    let lines = alike(300);
    let mut values: Vec<&[u8]> = vec![b"export VARIABLE_1", b"export V"];
    let value = lines.join("\n");
    values.push(value.as_bytes());
    let matcher = matcher(&values);
    let text = format!("<{}> export VARIABLE_299 export VARIABLE_3x export VARIABLEs export ", lines[42]);
    for step in 1..40 {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(step).collect();
        let (out, _) = masked(&matcher, &pieces);
        assert_eq!(String::from_utf8_lossy(&out), "<    ***> *** ***x ***ARIABLEs export ", "by {step}");
    }
}

#[test]
fn what_begins_like_a_thousand_forms_costs_no_more_than_what_begins_like_one() {
    let time = |lines: &[String]| {
        let matcher = matcher(&[lines.join("\n").as_bytes()]);
        let text = "export VARIABLE! ".repeat(4 << 10);
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        let begun = Instant::now();
        stream.feed(&matcher, text.as_bytes(), &mut out);
        let took = begun.elapsed();
        stream.finish(&mut out);
        assert!(out == text.as_bytes(), "something was masked");
        took
    };
    let (one, many) = (alike(2), alike(8000));
    let ratio = (0..3).map(|_| time(&many).as_secs_f64() / time(&one).as_secs_f64());
    let least = ratio.fold(f64::MAX, f64::min);
    // One search among 8,000 takes 13 comparisons; one by one would take as many as there are.
    assert!(least < 100.0, "{least} times");
}

#[test]
fn more_lines_than_have_encodings_are_all_masked_themselves() {
    let line = |at: u32| format!("line-{at:04x}-{:08x}", at.wrapping_mul(0x9e37_79b1));
    let value: Vec<String> = (0..4000).map(line).collect();
    let matcher = matcher(&[value.join("\n").as_bytes()]);
    for at in (0..4000).step_by(7) {
        assert_eq!(masked(&matcher, &[line(at).as_bytes()]).0, b"***");
    }
    assert_eq!(masked(&matcher, &[hex(line(0).as_bytes()).as_bytes()]).0, b"***");
    let without = (0..4000).filter(|at| masked(&matcher, &[hex(line(*at).as_bytes()).as_bytes()]).1 == 0);
    assert!(without.count() > 0, "all have them: the bound is elsewhere");
}

#[test]
fn outputs_are_not_searched_for_what_may_be_anybodys() {
    let value = "[default]\nkey = AKIA7Q2W\n-----BEGIN CERTIFICATE-----\nMIIEvgIBADANBgkq\n";
    let matcher = Matcher::new(Purpose::Outputs, &all(&[value.as_bytes()])).unwrap();
    for (text, count) in [
        ("[default]", 0),
        ("-----BEGIN CERTIFICATE-----", 0),
        ("key = AKIA7Q2W", 1),
        ("MIIEvgIBADANBgkq", 1),
        (value, 1),
    ] {
        assert_eq!(masked(&matcher, &[text.as_bytes()]).1, count, "{text}");
    }
}

/// The child of the next test: one process, of which the kernel says how much it ever had.
#[test]
#[ignore = "the other process of the test below"]
fn memory_process() {
    let Ok(dir) = std::env::var("AMPOULE_MASK_VALUES") else { return };
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let files = std::fs::read_dir(dir).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    let values = Values::new(files.collect());
    let text = vec![b'x'; 32 << 10];
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    let before = peak();
    let begun = Instant::now();
    let matcher = Matcher::new(Purpose::Log, &values).unwrap();
    stream.feed(&matcher, &text, &mut out);
    println!("used {} KiB, {} forms, {:?}", peak() - before, matcher.forms.len(), begun.elapsed());
}

/// 256 KiB of values.
fn shaped(shape: &str) -> Vec<Vec<u8>> {
    // xorshift64
    let noise = |bytes: usize, seed: usize| -> Vec<u8> {
        let next = |state: &u64| {
            let state = state ^ (state << 13);
            let state = state ^ (state >> 7);
            Some(state ^ (state << 17))
        };
        let states = std::iter::successors(Some(0x9e37_79b9 + seed as u64), next);
        states.skip(9).map(|state| (state >> 24) as u8).take(bytes).collect()
    };
    let text = |bytes: usize, seed: usize| base64(&noise(bytes * 3 / 4, seed), false, true).into_bytes();
    let lines = |bytes: usize, width: usize, seed: usize| -> Vec<u8> {
        text(bytes * width / (width + 1), seed).chunks(width).collect::<Vec<_>>().join(&b'\n')
    };
    let json = |bytes: usize, seed: usize| {
        let fields = text(bytes * 8 / 11, seed);
        let fields: Vec<_> = fields.chunks(8).map(|field| String::from_utf8_lossy(field)).collect();
        serde_json::to_vec(&fields).unwrap()
    };
    match shape {
        "bytes" => (0..4).map(|seed| noise(64 << 10, seed)).collect(),
        "text" => (0..4).map(|seed| text(64 << 10, seed)).collect(),
        "pem" => (0..4).map(|seed| lines(64 << 10, 64, seed)).collect(),
        "short lines" => (0..4).map(|seed| lines(64 << 10, 8, seed)).collect(),
        "json" => (0..4).map(|seed| json(64 << 10, seed)).collect(),
        _ => (0..32).map(|seed| text(8 << 10, seed)).collect(),
    }
}

#[test]
fn masks_of_the_largest_values_need_a_bounded_multiple_of_their_size() {
    const KIB_MAX: u64 = 32 * 256;
    // The others need less, and without optimisation as many seconds.
    let shapes: &[_] = match cfg!(debug_assertions) {
        true => &["bytes", "short lines"],
        false => &["bytes", "short lines", "text", "pem", "json", "many"],
    };
    let start = |shape: &&'static str| {
        // Made here: what making them takes is not to be had there.
        let dir = tempfile::tempdir().unwrap();
        for (number, value) in shaped(shape).iter().enumerate() {
            std::fs::write(dir.path().join(number.to_string()), value).unwrap();
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "mask::tests::memory_process", "--ignored", "--nocapture"]);
        let child = child.env("AMPOULE_MASK_VALUES", dir.path()).stdout(std::process::Stdio::piped());
        (*shape, dir, child.spawn().unwrap())
    };
    for (shape, _dir, child) in shapes.iter().map(start).collect::<Vec<_>>() {
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let used = said.split("used ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        println!("{shape}: {}", said.lines().find(|line| line.contains("used ")).unwrap_or_default());
        let used = used.unwrap_or_else(|| panic!("{shape}: {said}"));
        assert!(used > 256, "{shape}: {used} KiB are not even the values");
        assert!(used <= KIB_MAX, "{shape}: {used} KiB, at most {KIB_MAX}");
    }
}

#[test]
fn values_that_are_added_are_masked_from_then_on_beside_the_old_ones() {
    let mut matcher = matcher(&[b"the-old-value"]);
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    stream.feed(&matcher, b"the-old-va", &mut out);
    matcher.add(&all(&[b"the-new-value"])).unwrap();
    stream.resume();
    stream.feed(&matcher, b"lue the-new-value the-o", &mut out);
    stream.resume();
    stream.feed(&matcher, b"ld-value", &mut out);
    stream.finish(&mut out);
    assert_eq!(out, b"*** *** ***");
}

#[test]
fn value_that_is_added_is_masked_where_an_old_one_has_begun() {
    for (old, added) in [("AAAAAAAABBBBBBBBBB", "AAAAAAAABBBB"), ("ZZZZZZZZAAAAAAAAQQQQ", "AAAAAAAABBBB")] {
        let mut matcher = matcher(&[old.as_bytes()]);
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        let begun = old.rfind("AAAAAAAA").map_or("", |at| &old[..at + 8]);
        stream.feed(&matcher, begun.as_bytes(), &mut out);
        matcher.add(&all(&[added.as_bytes()])).unwrap();
        stream.resume();
        stream.feed(&matcher, b"BBBB\n", &mut out);
        stream.finish(&mut out);
        assert!(out.ends_with(b"***\n"), "{added} after {old}: {}", String::from_utf8_lossy(&out));
    }
}

/// `cargo test --release -p ampoule-runner mask::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let values: Vec<Vec<u8>> = (0..8_u32)
        .map(|at| format!("hvs.CAESI{at}Jq7xK2vP9mN4wR8tY{}zL5bD3fG", hex(&[at as u8; 4])).into_bytes())
        .collect();
    let matcher = Matcher::new(Purpose::Log, &Values::new(values)).unwrap();
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
