//! The log pump: one process per step between the step's streams and the supervisor.
//!
//! It alone reads what a step writes; the supervisor gets counted chunks and, at the end, the digest of each
//! whole stream. It alone has the values of the step's secrets, and masks them ([`crate::mask`]) before anything is hashed,
//! counted or passed on. It holds at most [`TAIL_BYTES`] of a stream and the longest form of a secret; a full pipe holds the step back, never the supervisor.

use crate::mask::{self, MaskError, Matcher, Purpose, Values};
use ampoule_ipc::{Channel, IpcError};
use ampoule_sandbox::fault;
use ampoule_spec::{LogReport, Stream};
use ampoule_sys::process::{Child, Keep, Namespaces, Which, spawn, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of a stream's end that are kept when its middle is cut.
const TAIL_BYTES: usize = 256 << 10;
/// Bytes in one chunk.
const CHUNK_BYTES: usize = 32 << 10;
/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;
/// Bytes that a step may be ahead, where the kernel allows it: with its usual 64 KiB, step and pump wait for each other.
const AHEAD_BYTES: usize = 256 << 10;
/// First byte of a packet with a chunk: then the stream, the offset, the bytes.
const CHUNK: u8 = 1;
/// First byte of a packet with the final [`LogReport`]s as JSON.
const SUMMARY: u8 = 2;

/// The packet that says that another secret is masked from here on.
const MASKED: u8 = 3;

/// What a pump says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Bytes of a stream, from this offset.
    Chunk(Stream, u64, Vec<u8>),
    /// Another secret is masked from here on.
    Masks,
    /// Both streams have ended.
    Summary(Vec<LogReport>),
}

/// A running pump.
#[derive(Debug)]
pub(crate) struct Pump {
    child: Child,
    pub(crate) channel: Channel,
}

impl Pump {
    /// Two ends of a stream: the pump's, and the step's.
    pub(crate) fn stream() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // An ordinary user with many pipes may have small ones only (pipe(7)), which do as well.
        let _ = fcntl_setpipe_size(&write, AHEAD_BYTES);
        Ok((read, write))
    }

    /// Starts a pump for these streams. It waits until it is told how much to keep.
    pub(crate) fn start(out: &OwnedFd, err: &OwnedFd, run_as: Option<u32>) -> std::io::Result<Self> {
        let (mine, theirs) = Channel::pair().map_err(std::io::Error::other)?;
        let keep = [out.as_fd(), err.as_fd(), theirs.as_fd()];
        let child = spawn(Namespaces::default(), None, Keep::Only(&keep), || {
            fault::role("pump");
            match lower_privilege("pump: lower its privilege", run_as)
                .and_then(|()| wait_and_pump(out, err, &theirs))
            {
                Ok(()) | Err(IpcError::Closed) => 0,
                Err(_) => 70,
            }
        })?;
        Ok(Self { child, channel: mine })
    }

    /// Begins to read, keeps up to `kept_bytes` of each stream, and masks the secrets that are in these files.
    pub(crate) fn begin(&self, kept_bytes: u64, secrets: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        self.channel.send_bytes(&kept_bytes.to_le_bytes(), secrets)
    }

    /// Has it mask another one; it says when it does.
    pub(crate) fn mask(&self, secret: BorrowedFd<'_>) -> Result<(), IpcError> {
        self.channel.send_bytes(&[MASKED], &[secret])
    }

    /// Receives what the pump has to say; poll its channel first to not wait.
    pub(crate) fn receive(&self) -> Result<Pumped, IpcError> {
        let (bytes, _) = self.channel.receive_bytes()?;
        parse(&bytes).ok_or(IpcError::TooLarge)
    }
}

impl Drop for Pump {
    /// Ends and reaps the pump, however its step ended: it is a process of the job's user ids.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = wait(Which::Pid(self.child.pid), true);
    }
}

/// As host root the pump runs as an id of the job's block that nothing in the sandbox has. So does the compressor of
/// outputs, when no pump is left.
pub(crate) fn lower_privilege(stage: &'static str, run_as: Option<u32>) -> Result<(), IpcError> {
    fault::point(stage).map_err(|_| IpcError::Closed)?;
    let refused = |e: nix::errno::Errno| IpcError::Kernel(Errno::from_raw_os_error(e as i32));
    if let Some(id) = run_as {
        let (uid, gid) = (nix::unistd::Uid::from_raw(id), nix::unistd::Gid::from_raw(id));
        nix::unistd::setgroups(&[]).map_err(refused)?;
        nix::unistd::setresgid(gid, gid, gid).map_err(refused)?;
        nix::unistd::setresuid(uid, uid, uid).map_err(refused)?;
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn parse(packet: &[u8]) -> Option<Pumped> {
    let (kind, rest) = packet.split_first()?;
    match *kind {
        CHUNK => {
            let (stream, rest) = rest.split_first()?;
            let (offset, bytes) = rest.split_first_chunk::<8>()?;
            let stream = if *stream == 1 { Stream::Stdout } else { Stream::Stderr };
            Some(Pumped::Chunk(stream, u64::from_le_bytes(*offset), bytes.to_vec()))
        }
        MASKED => Some(Pumped::Masks),
        SUMMARY => serde_json::from_slice(rest).ok().map(Pumped::Summary),
        _ => None,
    }
}

/// How long bytes wait for more before they are passed on: a step that writes byte by byte must not cost a
/// frame for each.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How long they wait when more keeps coming: whoever follows the log sees it live.
const GATHER_AT_MOST: Duration = Duration::from_millis(50);

/// One stream's state.
struct Lane {
    stream: Stream,
    head_left: u64,
    /// Bytes of the end that are kept.
    tail_max: usize,
    /// Bytes of the head that are not passed on yet, and where they begin.
    pending: Vec<u8>,
    pending_at: u64,
    /// Where packets are made.
    packet: Vec<u8>,
    bytes: u64,
    tail: VecDeque<u8>,
    cut: u64,
    hash: Sha256,
}

impl Lane {
    fn new(stream: Stream, kept_bytes: u64) -> Self {
        let tail_max = usize::try_from(kept_bytes / 2).unwrap_or(TAIL_BYTES).min(TAIL_BYTES);
        let head_left = kept_bytes.saturating_sub(tail_max as u64);
        Self {
            stream,
            head_left,
            tail_max,
            pending: Vec::with_capacity(CHUNK_BYTES + READ_BYTES),
            pending_at: 0,
            packet: Vec::with_capacity(CHUNK_BYTES + 10),
            bytes: 0,
            tail: VecDeque::new(),
            cut: 0,
            hash: Sha256::new(),
        }
    }

    /// Gathers the head and holds the tail back.
    fn take(&mut self, bytes: &[u8], channel: &Channel) -> Result<(), IpcError> {
        self.hash.update(bytes);
        let head = usize::try_from(self.head_left).unwrap_or(usize::MAX).min(bytes.len());
        let (head, rest) = bytes.split_at(head);
        if self.pending.is_empty() {
            self.pending_at = self.bytes;
        }
        self.pending.extend_from_slice(head);
        self.head_left -= head.len() as u64;
        self.bytes += bytes.len() as u64;
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.cut += over as u64;
        if self.pending.len() >= CHUNK_BYTES { self.pass_on(channel) } else { Ok(()) }
    }

    /// Sends what was gathered.
    fn pass_on(&mut self, channel: &Channel) -> Result<(), IpcError> {
        let mut pending = std::mem::take(&mut self.pending);
        let mut offset = self.pending_at;
        for chunk in pending.chunks(CHUNK_BYTES) {
            self.send(offset, chunk, channel)?;
            offset += chunk.len() as u64;
        }
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    fn send(&mut self, offset: u64, bytes: &[u8], channel: &Channel) -> Result<(), IpcError> {
        let packet = &mut self.packet;
        packet.clear();
        packet.push(CHUNK);
        packet.push(if self.stream == Stream::Stdout { 1 } else { 2 });
        packet.extend_from_slice(&offset.to_le_bytes());
        packet.extend_from_slice(bytes);
        channel.send_bytes(packet, &[])
    }

    fn finish(mut self, masked: u64, channel: &Channel) -> Result<LogReport, IpcError> {
        self.pass_on(channel)?;
        let tail: Vec<u8> = std::mem::take(&mut self.tail).into();
        let mut offset = self.bytes - tail.len() as u64;
        for chunk in tail.chunks(CHUNK_BYTES) {
            self.send(offset, chunk, channel)?;
            offset += chunk.len() as u64;
        }
        let sha256 = ampoule_spec::Sha256::new(self.hash.finalize().into());
        Ok(LogReport { stream: self.stream, bytes: self.bytes, sha256, cut_bytes: self.cut, masked })
    }
}

fn wait_and_pump(out: &OwnedFd, err: &OwnedFd, channel: &Channel) -> Result<(), IpcError> {
    let (bytes, secrets) = channel.receive_bytes()?;
    let kept_bytes = bytes.first_chunk::<8>().ok_or(IpcError::TooLarge)?;
    let matcher = match secrets.as_slice() {
        [] => None,
        secrets => Some(Matcher::new(Purpose::Log, &Values::read(secrets)?).map_err(unmaskable)?),
    };
    pump(out, err, u64::from_le_bytes(*kept_bytes), matcher, channel)
}

/// Without a mask nothing is passed on: the pump ends, and with it the step.
fn unmaskable(_: MaskError) -> IpcError {
    IpcError::Kernel(Errno::INVAL)
}

/// What masks a step's streams, if it has secrets.
struct Masks {
    matcher: Option<Matcher>,
    streams: [mask::Stream; 2],
    out: Vec<u8>,
}

impl Masks {
    /// Masks what was read, and passes on what may go.
    fn take(&mut self, at: usize, bytes: &[u8], lane: &mut Lane, channel: &Channel) -> Result<(), IpcError> {
        let (Some(matcher), Some(stream)) = (&self.matcher, self.streams.get_mut(at)) else {
            return lane.take(bytes, channel);
        };
        self.out.clear();
        stream.feed(matcher, bytes, &mut self.out);
        lane.take(&self.out, channel)
    }

    /// Masks another secret from here on.
    fn add(&mut self, secrets: &[OwnedFd], channel: &Channel) -> Result<(), IpcError> {
        let Some(matcher) = &mut self.matcher else { return Err(IpcError::Kernel(Errno::INVAL)) };
        matcher.add(&Values::read(secrets)?).map_err(unmaskable)?;
        self.streams.iter_mut().for_each(mask::Stream::resume);
        channel.send_bytes(&[MASKED], &[])
    }

    /// The last bytes of a stream, and how many masks were in all of it.
    fn finish(&mut self, at: usize, lane: &mut Lane, channel: &Channel) -> Result<u64, IpcError> {
        let Some(stream) = self.streams.get_mut(at) else { return Ok(0) };
        self.out.clear();
        stream.finish(&mut self.out);
        lane.take(&self.out, channel)?;
        Ok(stream.masked)
    }
}

fn pump(
    out: &OwnedFd,
    err: &OwnedFd,
    kept_bytes: u64,
    matcher: Option<Matcher>,
    channel: &Channel,
) -> Result<(), IpcError> {
    let mut masks = Masks { matcher, streams: Default::default(), out: Vec::new() };
    let mut lanes = [
        (out, true, Lane::new(Stream::Stdout, kept_bytes)),
        (err, true, Lane::new(Stream::Stderr, kept_bytes)),
    ];
    let mut buffer = vec![0_u8; READ_BYTES];
    let mut gathering_since: Option<Instant> = None;
    while lanes.iter().any(|(_, open, _)| *open) {
        let mut ready: Vec<PollFd<'_>> = lanes
            .iter()
            .filter(|(_, open, _)| *open)
            .map(|(fd, _, _)| PollFd::new(*fd, PollFlags::IN))
            .collect();
        // Another secret can come only where there was one.
        if masks.matcher.is_some() {
            ready.push(PollFd::new(channel, PollFlags::IN));
        }
        let waiting = lanes.iter().any(|(_, _, lane)| !lane.pending.is_empty());
        match poll(&mut ready, waiting.then_some(&GATHER)) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut answers: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(ready);
        if masks.matcher.is_some() && answers.pop() == Some(true) {
            masks.add(&channel.receive_bytes()?.1, channel)?;
        }
        let begun = gathering_since.get_or_insert_with(Instant::now);
        if !answers.contains(&true) || begun.elapsed() >= GATHER_AT_MOST {
            gathering_since = None;
            for (_, _, lane) in &mut lanes {
                lane.pass_on(channel)?;
            }
        }
        let open = lanes.iter_mut().enumerate().filter(|(_, (_, open, _))| *open);
        for ((at, (fd, open, lane)), _) in open.zip(answers).filter(|(_, ready)| *ready) {
            match rustix::io::read(*fd, &mut buffer) {
                Ok(0) => *open = false,
                Ok(count) => masks.take(at, buffer.get(..count).unwrap_or_default(), lane, channel)?,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    let mut reports = Vec::new();
    for (at, (_, _, mut lane)) in lanes.into_iter().enumerate() {
        let masked = masks.finish(at, &mut lane, channel)?;
        reports.push(lane.finish(masked, channel)?);
    }
    let mut packet = vec![SUMMARY];
    packet.extend(serde_json::to_vec(&reports).map_err(IpcError::Malformed)?);
    channel.send_bytes(&packet, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// What the last of these threads needed.
    static CPU_SECONDS: std::sync::Mutex<f64> = std::sync::Mutex::new(0.0);

    /// Runs the pump's loop in a thread (no fork) over these streams.
    fn pumped(stdout: Vec<u8>, kept: u64) -> (Vec<u8>, Vec<LogReport>) {
        pumped_with(stdout, kept, None)
    }

    fn pumped_with(stdout: Vec<u8>, kept: u64, matcher: Option<Matcher>) -> (Vec<u8>, Vec<LogReport>) {
        let (out_read, out_write) = Pump::stream().unwrap();
        let (err_read, err_write) = Pump::stream().unwrap();
        let (mine, theirs) = Channel::pair().unwrap();
        let writer = std::thread::spawn(move || {
            drop(err_write);
            std::fs::File::from(out_write).write_all(&stdout).unwrap();
        });
        let pumping = std::thread::spawn(move || {
            pump(&out_read, &err_read, kept, matcher, &theirs).unwrap();
            rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)
        });
        let mut got = Vec::new();
        loop {
            match parse(&mine.receive_bytes().unwrap().0).unwrap() {
                Pumped::Chunk(_, _, bytes) => got.extend(bytes),
                Pumped::Masks => {}
                Pumped::Summary(reports) => {
                    writer.join().unwrap();
                    let used = pumping.join().unwrap();
                    *CPU_SECONDS.lock().unwrap() = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
                    return (got, reports);
                }
            }
        }
    }

    /// `cargo test --release -p ampoule-runner pump::tests::speed -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let line = b"[ 42%] Building C object CMakeFiles/zlib.dir/inflate.c.o: cc -O2 -Wall -c inflate.c (0x7ffd3a2b)\n";
        let text: Vec<u8> = line.iter().copied().cycle().take(512 << 20).collect();
        let secret = |at: usize| format!("hvs.CAESI{at}Jq7xK2vP9mN4wR8tY{at}zL5bD3fG").into_bytes();
        for count in [0, 8, 0, 8] {
            let values: Vec<Vec<u8>> = (0..count).map(secret).collect();
            let matcher =
                (count > 0).then(|| Matcher::new(Purpose::Log, &Values::new(values.clone())).unwrap());
            let begun = Instant::now();
            let (_, reports) = pumped_with(text.clone(), 64 << 20, matcher);
            let rate = reports[0].bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
            let of_cpu = reports[0].bytes as f64 / 1e6 / *CPU_SECONDS.lock().unwrap();
            println!("{count} secrets: {rate:.0} MB/s, {of_cpu:.0} MB/s of processor time");
        }
    }

    #[test]
    fn secret_is_masked_before_it_is_hashed_and_counted() {
        let matcher = Matcher::new(Purpose::Log, &Values::new(vec![b"correct-horse".to_vec()])).unwrap();
        let text = b"a correct-horse, and correct-horses".to_vec();
        let (got, reports) = pumped_with(text, 64 << 20, Some(matcher));
        assert_eq!(got, b"a ***, and ***s");
        assert_eq!((reports[0].bytes, reports[0].masked, reports[1].masked), (15, 2, 0));
        assert_eq!(*reports[0].sha256.as_bytes(), <[u8; 32]>::from(Sha256::digest(&got)));
    }

    #[test]
    fn pump_passes_every_byte_and_its_digest() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0] ^ 0x1b).collect();
        let (got, reports) = pumped(bytes.clone(), 64 << 20);
        assert!(got == bytes, "other bytes came out than went in");
        assert_eq!(reports[0].bytes, 300_000);
        assert_eq!(reports[0].cut_bytes, 0);
        assert_eq!(*reports[0].sha256.as_bytes(), <[u8; 32]>::from(Sha256::digest(&bytes)));
    }

    #[test]
    fn pump_gathers_small_writes() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (err, _) = rustix::pipe::pipe().unwrap();
        let (mine, theirs) = Channel::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for _ in 0..5000 {
                rustix::io::write(&write, b"x").unwrap();
            }
        });
        let pumping = std::thread::spawn(move || pump(&read, &err, 1 << 20, None, &theirs).unwrap());
        let (mut packets, mut bytes) = (0, 0);
        while let Pumped::Chunk(_, offset, chunk) = parse(&mine.receive_bytes().unwrap().0).unwrap() {
            assert_eq!(offset, bytes);
            bytes += chunk.len() as u64;
            packets += 1;
        }
        writer.join().unwrap();
        pumping.join().unwrap();
        assert_eq!(bytes, 5000);
        assert!(packets < 500, "{packets} packets for 5000 writes of a byte");
    }

    #[test]
    fn pump_over_the_limit_cuts_the_middle_and_counts_it() {
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n >> 8).to_le_bytes()[0]).collect();
        let (got, reports) = pumped(bytes.clone(), (2 * TAIL_BYTES + 1000) as u64);
        let head = TAIL_BYTES + 1000;
        assert_eq!(got.len(), head + TAIL_BYTES);
        assert!(got[..head] == bytes[..head], "the head is not the stream's");
        assert!(got[head..] == bytes[bytes.len() - TAIL_BYTES..], "the tail is not the stream's");
        assert_eq!(reports[0].cut_bytes as usize, bytes.len() - got.len());
        assert_eq!(*reports[0].sha256.as_bytes(), <[u8; 32]>::from(Sha256::digest(&bytes)));
    }
}
