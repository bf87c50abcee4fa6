//! The sockets on which samples are handed over.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use tokio::net::{UdpSocket, UnixDatagram};

/// Longest datagram in bytes: what UDP can carry.
pub const MAX_DATAGRAM_BYTES: usize = 65_535;
/// Room in the kernel for datagrams that wait, in bytes; it may give less.
const KERNEL_BUFFER_BYTES: usize = 1024 * 1024;
/// Who may write to a Unix socket: the agent's user and group.
const MODE: u32 = 0o660;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UDP port.
    Udp(SocketAddr),
    /// A Unix datagram socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The socket could not be bound.
    #[error("failed to listen on `{address}`")]
    Bind {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// There is something else than a socket.
    #[error("`{path}` is there and is no socket: remove it, or name another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("another process listens on `{path}`: stop it, or name another path")]
    Taken {
        /// The path.
        path: PathBuf,
    },
}

/// An open socket; a Unix socket's file goes with it.
pub enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram, #[expect(dead_code, reason = "it removes the file on drop")] SocketFile),
}

impl Socket {
    /// Begins to listen. Fails when the address is taken or may not be used.
    pub fn open(address: &Address) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Bind { address: address.clone(), source };
        let socket = match address {
            Address::Udp(address) => {
                let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Self::Udp(UdpSocket::from_std(socket).map_err(failed)?)
            }
            Address::Unix(path) => {
                make_way(path)?;
                let socket = UnixDatagram::bind(path).map_err(failed)?;
                let file = SocketFile::of(path).map_err(failed)?;
                fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
                Self::Unix(socket, file)
            }
        };
        socket.widen();
        Ok(socket)
    }

    fn widen(&self) {
        let descriptor = match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Unix(socket, _) => socket.as_fd(),
        };
        // A smaller one serves as well until a burst overruns it.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(descriptor, KERNEL_BUFFER_BYTES);
    }

    /// Completes once a datagram may be there.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.readable().await,
            Self::Unix(socket, _) => socket.readable().await,
        }
    }

    /// Reads a datagram, cut to the buffer's length. Fails when there is none.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.try_recv(buffer),
            Self::Unix(socket, _) => socket.try_recv(buffer),
        }
    }
}

/// Removes a socket that nobody serves any more, as a killed agent leaves one.
fn make_way(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Bind { address: Address::Unix(path.to_owned()), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(OpenError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let probe = std::os::unix::net::UnixDatagram::unbound().map_err(failed)?;
    match probe.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        _ => Err(OpenError::Taken { path: path.to_owned() }),
    }
}

/// The file of a Unix socket, removed on drop unless it is another one by then.
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: Self::id(path)? })
    }

    fn id(path: &Path) -> io::Result<(u64, u64)> {
        let file = fs::symlink_metadata(path)?;
        Ok((file.dev(), file.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::id(&self.path).is_ok_and(|id| id == self.id) {
            // What stays is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Socket, OpenError> {
        Socket::open(&Address::Unix(path.to_owned()))
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixDatagram::bind(&path).unwrap());
        assert!(path.exists(), "the file outlives its socket");
        let socket = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_others_have_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Taken { .. })));
        // Another process has replaced the file meanwhile.
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());

        let stream = folder.path().join("stream");
        let _listener = std::os::unix::net::UnixListener::bind(&stream).unwrap();
        assert!(matches!(open(&stream), Err(OpenError::Taken { .. })));
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(open(&file), Err(OpenError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert!(matches!(open(&folder.path().join("no/such/folder")), Err(OpenError::Bind { .. })));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told() {
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = Address::Udp(other.local_addr().unwrap());
        let error = Socket::open(&address).err().unwrap();
        assert_eq!(error.to_string(), format!("failed to listen on `{address}`"));
    }
}
