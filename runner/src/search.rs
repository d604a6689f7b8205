//! The search of outputs for secrets: a process beside the supervisor, which alone has the values when their steps are over.
//!
//! The supervisor gives it what steps had when they have ended, and each byte and name of an output while it copies it;
//! asked, it says of which secret the first form was that it saw. It has no privilege and opens no file, like the log
//! pump, and ends with the outputs. What it is given in one file cannot be a form together with what is in another.

use crate::mask::{MaskError, Matcher, Purpose, Stream, Values};
use crate::pump::lower_privilege;
use ampoule_ipc::{Channel, DESCRIPTORS_MAX, IpcError, MESSAGE_BYTES_MAX};
use ampoule_sandbox::{confine, fault};
use ampoule_spec::Name;
use ampoule_store::pack::Seen;
use ampoule_sys::process::{Child, Keep, Namespaces, Which, spawn, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The most bytes that different values of a job's steps may have together to be searched for.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file in one packet.
const CHUNK_BYTES: usize = MESSAGE_BYTES_MAX - 1;

/// First bytes of packets: descriptors of values are beside it; a name, which is whole; bytes of a file; its end; a question.
const VALUES: u8 = 1;
const NAME: u8 = 2;
const BYTES: u8 = 3;
const END: u8 = 4;
const ASK: u8 = 5;
/// What is answered besides the number of a value, counted from 1 in the order in which they came.
const NOTHING: u32 = 0;
const TOO_MUCH: u32 = u32::MAX;
const UNFOLLOWED: u32 = u32::MAX - 1;
/// How often whoever waits for the process is asked whether it still wants to.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// An error once nobody wants to wait any more.
pub(crate) type Wanted<'a> = &'a dyn Fn() -> io::Result<()>;

/// What was found in an output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'n> {
    /// Nothing.
    Nothing,
    /// A form of this secret.
    Secret(&'n Name),
    /// Nobody knows: the values are more than are searched for.
    Unknown,
    /// Nobody knows: more forms began at a time than are followed.
    Unfollowed,
}

/// Whether a job's outputs are searched.
#[derive(Debug, Default)]
pub(crate) enum Searched {
    /// No step has had a secret.
    #[default]
    Needless,
    /// By this.
    By(Search),
    /// They would have to be, and cannot: none is taken out, whatever else has failed.
    Lost,
}

impl Searched {
    /// Has them searched for these too.
    pub(crate) fn add<'v>(
        &mut self,
        values: impl Iterator<Item = (&'v Name, BorrowedFd<'v>)>,
        run_as: Option<u32>,
    ) -> io::Result<()> {
        let mut search = match std::mem::replace(self, Self::Lost) {
            Self::Needless => Search::start(run_as)?,
            Self::By(search) => search,
            Self::Lost => return Err(io::Error::other("the search is lost")),
        };
        search.add(values)?;
        *self = Self::By(search);
        Ok(())
    }

    /// What searches them.
    pub(crate) fn search(&self) -> Option<&Search> {
        match self {
            Self::By(search) => Some(search),
            Self::Needless | Self::Lost => None,
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

/// The supervisor's end. The process is ended and reaped when it is dropped: it is one of the job's user ids.
#[derive(Debug)]
pub(crate) struct Search {
    child: Option<Child>,
    channel: Channel,
    /// Whose each value is that was given.
    names: Vec<Name>,
}

impl Search {
    /// Starts one.
    pub(crate) fn start(run_as: Option<u32>) -> io::Result<Self> {
        let (mine, theirs) = pair()?;
        let namespaces = Namespaces { net: run_as.is_some(), ipc: run_as.is_some(), ..Namespaces::default() };
        let child = spawn(namespaces, None, Keep::Only(&[theirs.as_fd()]), || {
            fault::role("search");
            let confined = lower_privilege("search: lower its privilege", run_as).is_ok()
                && confine::limit_worker(0).is_ok()
                && confine::confine_to_descriptors().is_ok();
            i32::from(!confined || serve(&theirs, VALUE_BYTES_MAX).is_err())
        })?;
        Ok(Self { child: Some(child), channel: mine, names: Vec::new() })
    }

    /// Gives it values to search for.
    pub(crate) fn add<'v>(
        &mut self,
        values: impl Iterator<Item = (&'v Name, BorrowedFd<'v>)>,
    ) -> io::Result<()> {
        let (names, values): (Vec<&Name>, Vec<BorrowedFd<'_>>) = values.unzip();
        for group in values.chunks(DESCRIPTORS_MAX) {
            self.send(&[VALUES], group, &|| Ok(()))?;
        }
        self.names.extend(names.into_iter().cloned());
        Ok(())
    }

    /// Shows it what is copied. It may be slow: what a tenant made decides.
    pub(crate) fn see(&self, seen: Seen<'_>, wanted: Wanted<'_>) -> io::Result<()> {
        let send = |kind: u8, bytes: &[u8]| self.send(&[&[kind][..], bytes].concat(), &[], wanted);
        match seen {
            Seen::Name(name) => name.chunks(CHUNK_BYTES).try_for_each(|part| send(NAME, part)),
            Seen::Bytes(part) => part.chunks(CHUNK_BYTES).try_for_each(|part| send(BYTES, part)),
            Seen::End => send(END, &[]),
        }
    }

    /// Asks what was in everything that it was shown since it was asked last.
    pub(crate) fn found(&self, wanted: Wanted<'_>) -> io::Result<Found<'_>> {
        self.send(&[ASK], &[], wanted)?;
        let (answer, _) = self.once(PollFlags::IN, wanted, || self.channel.receive_bytes())?;
        let number = answer.first_chunk().map(|number| u32::from_le_bytes(*number));
        match number {
            Some(NOTHING) => Ok(Found::Nothing),
            Some(TOO_MUCH) => Ok(Found::Unknown),
            Some(UNFOLLOWED) => Ok(Found::Unfollowed),
            number => {
                let name = number.and_then(|number| self.names.get(number as usize - 1));
                name.map(Found::Secret).ok_or_else(|| io::Error::other("the search answers with no secret"))
            }
        }
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], wanted: Wanted<'_>) -> io::Result<()> {
        self.once(PollFlags::OUT, wanted, || self.channel.send_bytes(bytes, descriptors))
    }

    /// Does something with the channel once that need not wait.
    fn once<T>(
        &self,
        ready: PollFlags,
        wanted: Wanted<'_>,
        act: impl Fn() -> Result<T, IpcError>,
    ) -> io::Result<T> {
        loop {
            match act() {
                Err(IpcError::Kernel(Errno::AGAIN)) => {}
                acted => return acted.map_err(io::Error::other),
            }
            wanted()?;
            match poll(&mut [PollFd::new(&self.channel, ready)], Some(&LOOK_EVERY)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// A channel on whose first end nothing waits.
fn pair() -> io::Result<(Channel, Channel)> {
    let (mine, theirs) = Channel::pair().map_err(io::Error::other)?;
    fcntl_setfl(&mine, fcntl_getfl(&mine)? | OFlags::NONBLOCK)?;
    Ok((mine, theirs))
}

impl Drop for Search {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ = wait(Which::Pid(child.pid), true);
        }
    }
}

/// The process's state.
struct Searching {
    matcher: Matcher,
    /// Which value of all that came each of the matcher's is.
    numbers: Vec<u32>,
    came: u32,
    bytes_left: usize,
    is_too_much: bool,
    stream: Stream,
    /// What streams let go: nobody wants it.
    out: Vec<u8>,
    found: Option<u32>,
    is_unfollowed: bool,
}

fn serve(channel: &Channel, bytes_max: usize) -> Result<(), IpcError> {
    let mut searching = Searching::new(bytes_max).map_err(|_| IpcError::TooLarge)?;
    loop {
        let (packet, values) = match channel.receive_bytes() {
            Err(IpcError::Closed) => return Ok(()),
            received => received?,
        };
        let Some((kind, bytes)) = packet.split_first() else { return Err(IpcError::TooLarge) };
        match *kind {
            VALUES => searching.add(&Values::read(&values)?),
            NAME => {
                searching.feed(bytes);
                searching.end();
            }
            BYTES => searching.feed(bytes),
            END => searching.end(),
            ASK => channel.send_bytes(&searching.answer().to_le_bytes(), &[])?,
            _ => return Err(IpcError::TooLarge),
        }
    }
}

impl Searching {
    fn new(bytes_max: usize) -> Result<Self, MaskError> {
        Ok(Self {
            matcher: Matcher::new(Purpose::Outputs, &Values::default())?,
            numbers: Vec::new(),
            came: 0,
            bytes_left: bytes_max,
            is_too_much: false,
            stream: Stream::default(),
            out: Vec::new(),
            found: None,
            is_unfollowed: false,
        })
    }

    /// Takes values. One that was there already, as when two steps have the same secret, is looked for once.
    fn add(&mut self, values: &Values) {
        let mut fresh: Vec<&[u8]> = Vec::new();
        for value in values.iter() {
            self.came = self.came.saturating_add(1);
            if !self.matcher.has(value) && !fresh.contains(&value) {
                fresh.push(value);
                self.numbers.push(self.came);
            }
        }
        let bytes = fresh.iter().map(|value| value.len()).sum();
        match self.bytes_left.checked_sub(bytes) {
            Some(left) if self.matcher.add_all(&fresh).is_ok() => self.bytes_left = left,
            _ => self.is_too_much = true,
        }
    }

    /// What follows a find, or what ended the search, is not looked at.
    fn feed(&mut self, bytes: &[u8]) {
        let is_decided = self.found.is_some() || self.is_unfollowed;
        if !is_decided && self.stream.first.is_none() && !self.stream.is_over {
            self.stream.feed(&self.matcher, bytes, &mut self.out);
            self.out.clear();
        }
    }

    fn end(&mut self) {
        let stream = std::mem::take(&mut self.stream);
        let number = stream.first.and_then(|first| self.numbers.get(first as usize).copied());
        self.found = self.found.or(number);
        self.is_unfollowed |= stream.is_over;
    }

    fn answer(&mut self) -> u32 {
        self.end();
        match (self.found.take(), std::mem::take(&mut self.is_unfollowed)) {
            _ if self.is_too_much => TOO_MUCH,
            (Some(found), _) => found,
            (None, true) => UNFOLLOWED,
            (None, false) => NOTHING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    fn file(value: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(value).unwrap();
        file.into()
    }

    /// A search whose other end is a thread.
    fn search(values: &[(&str, &[u8])]) -> Search {
        search_of(values, 1000)
    }

    fn search_of(values: &[(&str, &[u8])], bytes_max: usize) -> Search {
        let (mine, theirs) = pair().unwrap();
        std::thread::spawn(move || serve(&theirs, bytes_max).unwrap());
        let mut search = Search { child: None, channel: mine, names: Vec::new() };
        for (name, value) in values {
            let (name, file) = (Name::parse(name).unwrap(), file(value));
            search.add([(&name, file.as_fd())].into_iter()).unwrap();
        }
        search
    }

    fn found(search: &Search, seen: &[Seen<'_>]) -> Option<String> {
        seen.iter().for_each(|seen| search.see(*seen, GO_ON).unwrap());
        match search.found(GO_ON).unwrap() {
            Found::Secret(name) => Some(name.to_string()),
            Found::Nothing => None,
            Found::Unknown => Some("?".to_owned()),
            Found::Unfollowed => Some("over".to_owned()),
        }
    }

    const GO_ON: Wanted<'static> = &|| Ok(());
    const A: &[u8] = b"first-secret-Kq8z";
    const B: &[u8] = b"second-secret-Mw3v";

    #[test]
    fn secret_is_found_in_bytes_and_names_and_named() {
        let search = search(&[("a", A), ("b", B), ("c", A)]);
        let hex: String = B.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found(&search, &[Seen::Bytes(b"no secret"), Seen::End]), None);
        assert_eq!(found(&search, &[Seen::Bytes(A), Seen::End]).as_deref(), Some("a"));
        assert_eq!(found(&search, &[Seen::Bytes(b"no secret"), Seen::End]), None, "each output by itself");
        assert_eq!(found(&search, &[Seen::Name(b"bin/second-secret-Mw3v/x")]).as_deref(), Some("b"));
        assert_eq!(found(&search, &[Seen::Bytes(hex.as_bytes())]).as_deref(), Some("b"));
        // Large, and across what is sent at a time.
        let mut large = vec![b'x'; CHUNK_BYTES * 3 - 5];
        large.extend_from_slice(B);
        assert_eq!(found(&search, &[Seen::Bytes(&large), Seen::End]).as_deref(), Some("b"));
        let halves = [Seen::Bytes(&B[..9]), Seen::Bytes(&B[9..]), Seen::End];
        assert_eq!(found(&search, &halves).as_deref(), Some("b"));
        // Two files are not one.
        assert_eq!(found(&search, &[Seen::Bytes(&B[..9]), Seen::End, Seen::Bytes(&B[9..]), Seen::End]), None);
    }

    #[test]
    fn values_that_come_later_are_searched_for_and_too_many_are_said_to_be() {
        let mut search = search(&[]);
        assert_eq!(found(&search, &[Seen::Bytes(A)]), None);
        let name = Name::parse("late").unwrap();
        let late = file(A);
        search.add(std::iter::repeat_n((&name, late.as_fd()), 100)).unwrap();
        assert_eq!(found(&search, &[Seen::Bytes(A)]).as_deref(), Some("late"));
        for _ in 0..2 {
            search.add([(&name, file(&[b'y'; 980]).as_fd())].into_iter()).unwrap();
            assert_eq!(found(&search, &[Seen::Bytes(A)]).as_deref(), Some("late"));
        }
        search.add([(&name, file(b"a few bytes more").as_fd())].into_iter()).unwrap();
        assert_eq!(found(&search, &[Seen::Bytes(b"nothing")]).as_deref(), Some("?"));
    }

    #[test]
    fn search_that_died_is_an_error() {
        let (mine, theirs) = pair().unwrap();
        drop(theirs);
        let search = Search { child: None, channel: mine, names: Vec::new() };
        assert!(search.see(Seen::Bytes(A), GO_ON).is_err());
        assert!(search.found(GO_ON).is_err());
        // Nor is anything taken out without it from then on.
        let (name, value) = (Name::parse("a").unwrap(), file(A));
        let mut searched = Searched::By(search);
        for _ in 0..2 {
            assert!(searched.add([(&name, value.as_fd())].into_iter(), None).is_err());
            assert!(searched.is_lost() && searched.search().is_none());
        }
    }

    #[test]
    fn more_beginnings_than_are_followed_are_no_find_and_are_said_to_be_too_many() {
        let repeating = [b'y'; 2000];
        let search = search_of(&[("a", A), ("many", &repeating)], 5000);
        // Such a form begins at each byte, and none becomes whole.
        let ys = |count: usize| [Seen::Bytes(&repeating[..count]), Seen::Bytes(b" "), Seen::End];
        assert_eq!(found(&search, &ys(1000)), None);
        assert_eq!(found(&search, &ys(1900)).as_deref(), Some("over"));
        assert_eq!(found(&search, &[&ys(1900)[..], &[Seen::Bytes(A)]].concat()).as_deref(), Some("over"));
        let both = [&[Seen::Bytes(A), Seen::End], &ys(1900)[..]].concat();
        assert_eq!(found(&search, &both).as_deref(), Some("a"), "a find is one");
        assert_eq!(found(&search, &ys(1000)), None, "each output by itself");
        assert_eq!(found(&search, &[Seen::Bytes(&repeating), Seen::End]).as_deref(), Some("many"));
    }

    #[test]
    fn what_follows_a_find_is_not_searched() {
        let matcher = Values::new(vec![A.to_vec()]);
        let mut searching = Searching::new(1000).unwrap();
        searching.add(&matcher);
        searching.feed(A);
        let before = (searching.stream.first, searching.stream.masked);
        searching.feed(&[A, A].concat());
        assert_eq!((searching.stream.first, searching.stream.masked), before);
        assert_eq!(before.0, Some(0));
        // Nor in the next file, until it is asked.
        searching.end();
        searching.feed(A);
        assert_eq!(searching.stream.first, None);
        assert_eq!(searching.answer(), 1);
        searching.feed(A);
        assert_eq!(searching.answer(), 1);
    }

    #[test]
    fn search_that_is_slow_is_given_up_when_nobody_wants_it() {
        let (mine, theirs) = pair().unwrap();
        let search = Search { child: None, channel: mine, names: Vec::new() };
        let asked = std::cell::Cell::new(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            if asked.get() > 2 { Err(io::Error::other("cancelled")) } else { Ok(()) }
        };
        // Nobody reads at the other end, and nobody answers.
        let ended = (0..1000).try_for_each(|_| search.see(Seen::Bytes(&[b'x'; 4096]), &wanted));
        assert_eq!(ended.unwrap_err().to_string(), "cancelled");
        drop((search, theirs));
        let (mine, _theirs) = pair().unwrap();
        let search = Search { child: None, channel: mine, names: Vec::new() };
        asked.set(0);
        assert_eq!(search.found(&wanted).unwrap_err().to_string(), "cancelled");
    }
}
