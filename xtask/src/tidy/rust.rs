//! A rough reader of Rust source: enough to tell code from comments and strings.

/// The source with the insides of comments, strings and character literals turned into spaces.
/// Lines stay where they are.
pub(crate) fn code_of(source: &str) -> String {
    let mut scanner = Scanner { chars: source.chars().collect(), at: 0, out: String::new() };
    while scanner.at < scanner.chars.len() {
        scanner.step();
    }
    scanner.out
}

/// Whether `word` stands in `line` by itself, not as part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|s| s.chars().next());
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// The number of lines before the file's trailing unit tests; all of them if it has none.
pub(crate) fn lines_before_tests(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    lines
        .windows(2)
        .position(|pair| matches!(pair, [a, b] if *a == "#[cfg(test)]" && b.starts_with("mod ") && b.ends_with('{')))
        .unwrap_or(lines.len())
}

struct Scanner {
    chars: Vec<char>,
    at: usize,
    out: String,
}

impl Scanner {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn keep(&mut self) {
        let c = self.peek(0);
        self.out.push(c);
        self.at += 1;
    }

    fn blank(&mut self) {
        let c = self.peek(0);
        self.out.push(if c == '\n' { '\n' } else { ' ' });
        self.at += 1;
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.blank();
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('\'', _) => self.quote(),
            ('r', '"' | '#') if !self.inside_name() && self.raw_string() => {}
            ('b' | 'c', 'r') if !self.inside_name() && matches!(self.peek(2), '"' | '#') => {
                self.keep();
                if !self.raw_string() {
                    self.keep();
                }
            }
            _ => self.keep(),
        }
    }

    fn inside_name(&self) -> bool {
        self.out.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
    }

    fn block_comment(&mut self) {
        let mut depth = 0usize;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.blank();
                    continue;
                }
            }
            self.blank();
            self.blank();
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.keep();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            if self.peek(0) == '\\' {
                self.blank();
            }
            self.blank();
        }
        self.keep_if_any();
    }

    /// Consumes `r"…"` or `r#"…"#`; says no to `r#name`.
    fn raw_string(&mut self) -> bool {
        let hashes = (1..).take_while(|ahead| self.peek(*ahead) == '#').count();
        if self.peek(1 + hashes) != '"' {
            return false;
        }
        for _ in 0..hashes + 2 {
            self.keep();
        }
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == '#');
            if closes {
                for _ in 0..=hashes {
                    self.keep();
                }
                return true;
            }
            self.blank();
        }
        true
    }

    /// A character literal or a lifetime.
    fn quote(&mut self) {
        let literal = self.peek(1) == '\\' || self.peek(2) == '\'';
        self.keep();
        if !literal {
            return;
        }
        if self.peek(0) == '\\' {
            self.blank();
        }
        self.blank();
        while self.at < self.chars.len() && self.peek(0) != '\'' {
            self.blank();
        }
        self.keep_if_any();
    }

    fn keep_if_any(&mut self) {
        if self.at < self.chars.len() {
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_blanks_comments_and_literals_only() {
        let source = "let a = \"bad \\\" bad\"; // bad\n/* bad /* bad */ bad */ good('\\'', 'b', r#\"bad\"#, b\"bad\");\n\
            fn f<'bad_not>(x: &'a str) { r#good }";
        let code = code_of(source);
        assert_eq!(code.lines().count(), 3);
        assert!(!has_word(&code, "bad"), "{code}");
        assert_eq!(code.matches("good").count(), 2, "{code}");
        assert!(code.contains("'bad_not"), "{code}");
        assert_eq!(code_of("br\"bad\" b'\"' x"), "br\"   \" b' ' x");
    }

    #[test]
    fn has_word_ignores_longer_names() {
        assert!(has_word("x = word;", "word"));
        assert!(!has_word("x = a_word; wordy", "word"));
    }

    #[test]
    fn lines_before_tests_stops_at_the_test_module() {
        assert_eq!(lines_before_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
    }
}
