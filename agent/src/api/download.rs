//! An output on its way to a client.
//!
//! Guarantees: nothing of it is kept but a few parts in memory, however large it is and however slow its reader; the part from
//! an offset on is the same whenever it is asked for; whoever stops reading holds one seat of his project, and loses it with
//! his stream.

use super::error::ApiError;
use crate::fair::Seat;
use crate::job::OpenedOutput;
use ampoule_proto::v1 as wire;
use ampoule_spec::Code;
use ampoule_store::Limits;
use ampoule_store::pack::pack_output;
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tonic::Status;

/// Bytes of an output in one message.
const PART_BYTES: usize = 256 << 10;
/// Parts that wait for their reader.
const PARTS_WAITING: usize = 2;

type Part = wire::DownloadOutputResponse;
type Parts = Pin<Box<dyn Stream<Item = Result<Part, Status>> + Send>>;

/// Whether there is something from this offset on, as far as that is known before it is read.
///
/// # Errors
/// The offset, if it is beyond the end of a file.
pub(super) fn check(opened: &OpenedOutput, offset: u64) -> Result<(), ApiError> {
    match opened {
        OpenedOutput::File { length, .. } if offset > *length => Err(beyond(*length)),
        _ => Ok(()),
    }
}

/// The parts of an output from an offset on. To be called within a runtime.
///
/// # Errors
/// The offset, if it is beyond the end; of a tree that is known, and told, only at its end.
pub(super) fn parts(opened: OpenedOutput, offset: u64, seat: Seat) -> Result<Parts, ApiError> {
    check(&opened, offset)?;
    match opened {
        OpenedOutput::Tree { root, epoch } => Ok(of_tree(root, epoch, offset, seat)),
        OpenedOutput::File { mut file, .. } => {
            file.seek(SeekFrom::Start(offset)).map_err(cannot)?;
            let mut at = offset;
            let file = tokio::fs::File::from_std(file);
            let chunks = ReaderStream::with_capacity(file, PART_BYTES).map_err(|e| Status::from(cannot(e)));
            let parts = chunks.map_ok(move |data| {
                // It goes with the stream.
                let _ = &seat;
                let part = Part { offset: at, data: data.into() };
                at += part.data.len() as u64;
                part
            });
            Ok(parts.boxed())
        }
    }
}

fn beyond(length: u64) -> ApiError {
    ApiError::field("offset", format!("beyond the end: there are {length} bytes"))
}

fn cannot(error: impl std::error::Error) -> ApiError {
    ApiError::new(Code::Internal, format!("an output: {}", crate::chain::chain(&error)))
}

/// Packs a tree while its reader takes it. What comes before the offset is made and thrown away: it costs time and no room.
fn of_tree(root: OwnedFd, epoch: u64, offset: u64, seat: Seat) -> Parts {
    let (sender, parts) = mpsc::channel(PARTS_WAITING);
    let out = Out { sender, skip: offset, at: offset, data: Vec::new() };
    tokio::task::spawn_blocking(move || {
        // Until the thread has ended, not only its reader: there are no more threads than seats.
        let _seat = seat;
        out.pack(root, epoch);
    });
    ReceiverStream::new(parts).boxed()
}

/// Where an archive is written to: parts, as fast as they are taken.
struct Out {
    sender: mpsc::Sender<Result<Part, Status>>,
    /// Bytes that are not wanted yet.
    skip: u64,
    /// Where `data` belongs.
    at: u64,
    data: Vec<u8>,
}

impl Out {
    fn pack(mut self, root: OwnedFd, epoch: u64) {
        let limits = Limits { bytes_max: u64::MAX, ..Limits::default() };
        let packed = pack_output(root.as_fd(), &mut self, epoch, &limits);
        if self.sender.is_closed() {
            return;
        }
        let end = match packed {
            Err(error) => Err(cannot(error)),
            Ok(_) if self.skip > 0 => Err(beyond(self.at - self.skip)),
            Ok(_) => self.give().map_err(cannot),
        };
        if let Err(error) = end {
            // Who has gone hears of no error.
            let _ = self.sender.blocking_send(Err(error.into()));
        }
    }

    /// Hands on what there is, and waits until there is room for it.
    fn give(&mut self) -> io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.data, Vec::with_capacity(PART_BYTES));
        let (offset, length) = (self.at, data.len() as u64);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(Part { offset, data })).map_err(gone)?;
        self.at += length;
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sender.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let unwanted = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= unwanted as u64;
        let wanted = bytes.get(unwanted..).unwrap_or_default();
        let room = PART_BYTES - self.data.len();
        let taken = wanted.get(..room).unwrap_or(wanted);
        self.data.extend_from_slice(taken);
        if self.data.len() == PART_BYTES {
            self.give()?;
        }
        Ok(unwanted + taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fair::Seats;
    use std::path::Path;
    use std::sync::Arc;

    const EPOCH: u64 = 1_700_000_000;

    fn tree(bytes: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/large"), noise).unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        dir
    }

    fn root(dir: &Path) -> OwnedFd {
        std::fs::File::open(dir).unwrap().into()
    }

    fn open(dir: &Path, offset: u64, seats: &Arc<Seats>) -> Parts {
        let opened = OpenedOutput::Tree { root: root(dir), epoch: EPOCH };
        parts(opened, offset, seats.try_take("p").unwrap()).unwrap()
    }

    /// What came, from which offset, in parts whose places follow one another.
    async fn all(mut parts: Parts, offset: u64) -> Result<Vec<u8>, Status> {
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            let part = part?;
            assert_eq!(part.offset, offset + bytes.len() as u64);
            assert!(!part.data.is_empty() && part.data.len() <= PART_BYTES);
            bytes.extend(part.data);
        }
        Ok(bytes)
    }

    async fn free(seats: &Seats) {
        let before = std::time::Instant::now();
        while seats.load().0 > 0 {
            assert!(before.elapsed() < std::time::Duration::from_secs(10), "the seat is not given back");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn archive_from_any_offset_is_the_rest_of_the_whole() {
        let (dir, seats) = (tree(1 << 20), Seats::new(1, 1));
        let mut whole = Vec::new();
        pack_output(root(dir.path()).as_fd(), &mut whole, EPOCH, &Limits::default()).unwrap();
        let length = whole.len();
        for offset in [0, 1, 511, 512, 5000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, length - 1, length] {
            let got = all(open(dir.path(), offset as u64, &seats), offset as u64).await.unwrap();
            assert!(got == whole[offset..], "from {offset} on");
            free(&seats).await;
        }
        let error = all(open(dir.path(), length as u64 + 1, &seats), 0).await.unwrap_err();
        assert!(error.message().contains(&format!("there are {length} bytes")), "{error}");
        free(&seats).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reader_who_stops_holds_a_seat_and_a_few_parts_and_gives_them_back_with_his_stream() {
        let (dir, seats) = (tree(64 << 20), Seats::new(1, 1));
        let mut stopped = open(dir.path(), 0, &seats);
        let first = stopped.next().await.unwrap().unwrap();
        assert_eq!(first.offset, 0);
        // The packer waits: what it has read of the file goes no further than the parts that wait.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(seats.try_take("p").is_none());
        drop(stopped);
        free(&seats).await;
        // Also one that is still at what is not wanted.
        drop(open(dir.path(), 60 << 20, &seats));
        free(&seats).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tree_that_cannot_be_packed_is_an_error_and_no_shorter_archive() {
        let (dir, seats) = (tree(10), Seats::new(1, 1));
        std::os::unix::fs::symlink("/etc", dir.path().join("z")).unwrap();
        assert!(all(open(dir.path(), 0, &seats), 0).await.is_err());
        free(&seats).await;
    }
}
