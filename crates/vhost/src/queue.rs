//! Virtqueues: what both devices do with the memory that they share with a guest.

use crate::ServeError;
use std::io;
use std::os::unix::net::UnixListener;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error, VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringRwLock, VringT};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// The guest's memory, which the VMM may replace.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
/// The guest's memory as it is now.
pub type Guest = GuestMemoryMmap;
/// One request: descriptors in the guest's memory.
pub type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// What the queues can do: VERSION_1, EVENT_IDX, INDIRECT_DESC (virtio 1.2, 2.6 and 6).
pub const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28;

/// Takes the next chain off a queue; `None` when there is none, or the guest has broken the ring.
pub fn pop(vring: &VringRwLock, memory: &GuestMemoryLoadGuard<GuestMemoryMmap>) -> Option<Chain> {
    vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone())
}

/// What ends a device's thread when the VMM has hung up; without it the library waits for the thread for ever.
pub fn exit_event() -> Option<(EventConsumer, EventNotifier)> {
    new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
}

/// Runs a device for the one VMM that connects, until it hangs up. `prepare` gets the event loop before that.
pub fn serve<T>(
    name: &str,
    listener: UnixListener,
    device: T,
    memory: Memory,
    prepare: impl FnOnce(&VringEpollHandler<T>) -> io::Result<()>,
) -> Result<(), ServeError>
where
    T: VhostUserBackend<Bitmap = (), Vring = VringRwLock> + Clone + 'static,
{
    let mut daemon = VhostUserDaemon::new(name.to_owned(), device, memory).map_err(ServeError::Vmm)?;
    if let Some(handler) = daemon.get_epoll_handlers().first() {
        prepare(handler)?;
    }
    daemon.start(&mut Listener::from(listener)).map_err(ServeError::Vmm)?;
    match daemon.wait() {
        // How a VMM ends: between two messages, or in one when it is killed.
        Err(Error::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) | Ok(()) => Ok(()),
        Err(error) => Err(ServeError::Vmm(error)),
    }
}
