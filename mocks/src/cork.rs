//! Holds back what is written until more comes after it, so that both leave in one piece.
//!
//! A server that has something to say at once says it in the segment of its answer to the upgrade. A WebSocket library
//! writes that answer by itself and at once; behind a cork it waits for the first frame, or for the first flush after
//! the cork was drawn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose first bytes wait for those that follow.
#[derive(Debug)]
pub struct Cork<S> {
    stream: S,
    held: Vec<u8>,
    drawn: bool,
}

impl<S> Cork<S> {
    /// Nothing leaves until [`Self::draw`].
    pub const fn new(stream: S) -> Self {
        Self { stream, held: Vec::new(), drawn: false }
    }

    /// A stream that is not held back at all.
    pub const fn open(stream: S) -> Self {
        Self { stream, held: Vec::new(), drawn: true }
    }

    /// What is held leaves with the next write or flush.
    pub const fn draw(&mut self) {
        self.drawn = true;
    }

    /// The stream itself.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.drawn {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        self.held.extend_from_slice(buf);
        if let Poll::Ready(Err(error)) = self.poll_held(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.drawn {
            ready!(self.poll_held(cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_is_held_leaves_with_what_follows() {
        let (near, mut far) = tokio::io::duplex(1_024);
        let mut near = Cork::new(near);
        near.write_all(b"HTTP/1.1 101\r\n\r\n").await.unwrap();
        near.flush().await.unwrap();
        let mut buffer = [0; 1_024];
        let early = tokio::time::timeout(std::time::Duration::from_millis(1), far.read(&mut buffer)).await;
        assert!(early.is_err(), "nothing leaves before the cork is drawn");
        near.draw();
        near.write_all(b"a frame").await.unwrap();
        let read = far.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"HTTP/1.1 101\r\n\r\na frame");
        near.write_all(b"another").await.unwrap();
        let read = far.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"another");
    }

    #[tokio::test]
    async fn what_is_held_leaves_with_a_flush_and_before_the_end() {
        for ends in [false, true] {
            let (near, mut far) = tokio::io::duplex(1_024);
            let mut near = Cork::new(near);
            near.write_all(b"101").await.unwrap();
            if ends {
                near.shutdown().await.unwrap();
            } else {
                near.draw();
                near.flush().await.unwrap();
            }
            let mut buffer = [0; 16];
            assert_eq!(far.read(&mut buffer).await.unwrap(), 3, "ends: {ends}");
        }
    }
}
