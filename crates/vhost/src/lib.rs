//! Devices of a virtual machine that run as processes of their own, beside the VMM: read-only files
//! ([`fs`]) and hybrid vsock ([`vsock`]). Both speak vhost-user. Knows nothing of sandboxes.
//!
//! ```text
//!   guest kernel ──virtqueue in shared memory──► this process      fs:    files of the exports
//!        │                                          ▲               vsock: Unix sockets of the host
//!   VMM (QEMU) ──────vhost-user on a Unix socket────┘
//! ```
//!
//! # For who starts them
//!
//! One process serves one device of one virtual machine and ends when the VMM closes its connection.
//! Each role takes a plan as JSON ([`fs::Plan`], [`vsock::Plan`]) and its sockets as descriptors that
//! are bound and listening already, so that the VMM may be started at once:
//!
//! | role | argument | standard input | standard output |
//! |---|---|---|---|
//! | `__vm-fs` | [`fs::Plan`] | listening socket for the VMM | not used |
//! | `__vm-vsock` | [`vsock::Plan`] | listening socket for the VMM | listening socket for programs of the host, if the plan says `incoming` |
//!
//! Standard error takes what went wrong, one line. The thread that starts the role must live as long
//! as the role shall: the kernel ends a child with the *thread* that forked it.
//!
//! # What QEMU must be told
//!
//! Guest memory must be shared, or the device sees nothing of it:
//!
//! ```text
//! -object memory-backend-memfd,id=mem,size=1024M,share=on
//! -M microvm,rtc=on,memory-backend=mem   -global virtio-mmio.force-legacy=false
//! -chardev socket,id=fs,path=FS_SOCKET
//! -device vhost-user-fs-device,chardev=fs,tag=sandbox,queue-size=1024
//! -chardev socket,id=vsock,path=VSOCK_SOCKET
//! -device vhost-user-vsock-device,chardev=vsock
//! ```
//! With a PCI machine the devices are `vhost-user-fs-pci` and `vhost-user-vsock-pci`. In the guest
//! `mount -t virtiofs -o ro sandbox /exports`; each export is then a directory of it.
#![forbid(unsafe_code)]

pub mod fs;
mod queue;
pub mod vsock;
mod wall;

/// Why a device could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An export cannot be opened.
    #[error("cannot open the exported directory '{name}'")]
    Export {
        /// Its name in the guest.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// An export's name is no single name, or is there twice.
    #[error("'{0}' cannot be the name of an export")]
    Name(String),
    /// The wall around the process could not be built.
    #[error("cannot {step}")]
    Wall {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The program that started this process has ended already.
    #[error("the program that started this device has ended")]
    Orphan,
    /// The connection with the VMM.
    #[error("the connection with the virtual machine failed: {0}")]
    Vmm(vhost_user_backend::Error),
    /// An event queue or a descriptor of this process.
    #[error("cannot set up the device")]
    Setup(#[from] std::io::Error),
}
