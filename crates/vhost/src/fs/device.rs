//! The vhost-user side of the file server: takes requests off the queues and puts replies there.

use super::server::{MAX_READ, Server};
use crate::ServeError;
use crate::queue::{self, Memory};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringRwLock, VringT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// The queue for FORGET and one for everything else, both served by one thread.
const QUEUES: usize = 2;
/// More is not asked for by any kernel: a batch of FORGET fits.
const MAX_REQUEST: usize = 64 * 1024;

struct Device {
    server: Server,
    memory: Memory,
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// Serves until the VMM closes its connection.
pub fn serve(listener: UnixListener, server: Server) -> Result<(), ServeError> {
    let memory = Memory::new(queue::Guest::new());
    let reply = Vec::with_capacity(MAX_READ + 4096);
    let device = Device { server, memory: memory.clone(), request: Vec::new(), reply };
    queue::serve("fs", listener, Arc::new(Mutex::new(device)), memory, |_| Ok(()))
}

impl Device {
    /// Answers all requests that are in a queue.
    fn drain(&mut self, vring: &VringRwLock) {
        loop {
            // An error is a ring outside of the guest's memory, which is the guest's own loss.
            if vring.disable_notification().is_err() {
                return;
            }
            while self.one(vring).is_some() {}
            // False: nothing came while the guest was not yet told to notify again.
            if !matches!(vring.enable_notification(), Ok(true)) {
                return;
            }
        }
    }

    fn one(&mut self, vring: &VringRwLock) -> Option<()> {
        let memory = self.memory.memory();
        let chain = queue::pop(vring, &memory)?;
        let head = chain.head_index();
        let written = self.exchange(&memory, chain).unwrap_or(0);
        vring.add_used(head, written).ok()?;
        if vring.needs_notification().unwrap_or(true) {
            let _ = vring.signal_used_queue();
        }
        Some(())
    }

    /// Returns how many bytes of a reply were written.
    fn exchange(&mut self, memory: &queue::Guest, chain: queue::Chain) -> io::Result<u32> {
        let invalid = |_| io::ErrorKind::InvalidData;
        let reader = chain.clone().reader(memory).map_err(invalid)?;
        let mut writer = chain.writer(memory).map_err(invalid)?;
        self.request.clear();
        reader.take(MAX_REQUEST as u64).read_to_end(&mut self.request)?;
        self.server.answer(&self.request, writer.available_bytes(), &mut self.reply);
        writer.write_all(&self.reply)?;
        Ok(self.reply.len() as u32)
    }
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        queue::FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        queue::exit_event()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[VringRwLock], _thread: usize) -> io::Result<()> {
        // An error would end the thread, and with it the guest's files.
        if let Some(vring) = vrings.get(usize::from(event)) {
            self.drain(vring);
        }
        Ok(())
    }
}
