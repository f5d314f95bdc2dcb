//! The vhost-user side of vsock: packets between the queues and the multiplexer.

use super::mux::Mux;
use super::wire::{HEADER, Header, op};
use crate::ServeError;
use crate::queue::{self, Memory};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// For the guest, of the guest, and events, which the VMM keeps for itself.
const QUEUES: usize = 3;
const RX: usize = 0;
const TX: usize = 1;
/// The event number of the multiplexer's sockets; those up to the number of queues are taken.
const SOCKETS: u64 = QUEUES as u64 + 1;
/// The most data of one packet (what Linux sends at most).
const MAX_DATA: usize = 64 * 1024;
/// Packets of the guest that are taken before it gets some.
const TURN: usize = 64;

struct Device {
    cid: u64,
    mux: Mux,
    memory: Memory,
    data: Vec<u8>,
}

/// Serves until the VMM closes its connection.
pub fn serve(vmm: UnixListener, cid: u64, mux: Mux) -> Result<(), ServeError> {
    let memory = Memory::new(queue::Guest::new());
    let sockets = mux.events().as_raw_fd();
    let device = Device { cid, mux, memory: memory.clone(), data: Vec::with_capacity(MAX_DATA) };
    queue::serve("vsock", vmm, Arc::new(Mutex::new(device)), memory, |handler| {
        handler.register_listener(sockets, EventSet::IN, SOCKETS)
    })
}

impl Device {
    fn run(&mut self, vrings: &[VringRwLock]) {
        let (Some(rx), Some(tx)) = (vrings.get(RX), vrings.get(TX)) else { return };
        loop {
            let taken = self.take(tx);
            let given = self.give(rx);
            if !taken && !given {
                return;
            }
        }
    }

    /// Takes packets of the guest; false when there is none, or none may be taken now.
    fn take(&mut self, tx: &VringRwLock) -> bool {
        let mut any = false;
        if !tx.get_ref().is_enabled() || tx.disable_notification().is_err() {
            return false;
        }
        let memory = self.memory.memory();
        for _ in 0..TURN {
            if !self.mux.takes_more() {
                break;
            }
            let Some(chain) = queue::pop(tx, &memory) else { break };
            let head = chain.head_index();
            // What is no packet is dropped: its sender cannot be told.
            let _ = self.packet(&memory, chain);
            if tx.add_used(head, 0).is_err() {
                break;
            }
            any = true;
        }
        let more = matches!(tx.enable_notification(), Ok(true));
        if any && tx.needs_notification().unwrap_or(true) {
            let _ = tx.signal_used_queue();
        }
        any || more && self.mux.takes_more()
    }

    fn packet(&mut self, memory: &queue::Guest, chain: queue::Chain) -> io::Result<()> {
        let mut reader = chain.reader(memory).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut bytes = [0; HEADER];
        reader.read_exact(&mut bytes)?;
        let header = Header::read(&bytes);
        self.data.clear();
        let len = header.len as usize;
        let mut data = Some(&self.data[..]);
        if header.op == op::RW {
            data = None;
            if len <= self.mux.most(&header) {
                reader.take(len as u64).read_to_end(&mut self.data)?;
                data = Some(&self.data[..]).filter(|data| data.len() == len);
            }
        }
        self.mux.take(&header, data);
        Ok(())
    }

    /// Gives packets to the guest; false when there is none, or it has no room.
    fn give(&mut self, rx: &VringRwLock) -> bool {
        let mut any = false;
        if !self.mux.has_work() || !rx.get_ref().is_enabled() {
            return false;
        }
        let memory = self.memory.memory();
        let mut told = false;
        while self.mux.has_work() {
            let Some(chain) = queue::pop(rx, &memory) else {
                // It may have made room just before it was told to say so.
                if told || !matches!(rx.enable_notification(), Ok(true)) {
                    break;
                }
                told = true;
                continue;
            };
            told = false;
            let head = chain.head_index();
            let written = match self.fill(&memory, chain) {
                Ok(Some(written)) => written,
                Ok(None) => {
                    rx.get_mut().get_queue_mut().go_to_previous_position();
                    break;
                }
                // A buffer that cannot hold a packet is given back empty.
                Err(_) => 0,
            };
            if rx.add_used(head, written).is_err() {
                break;
            }
            any = true;
        }
        if any && rx.needs_notification().unwrap_or(true) {
            let _ = rx.signal_used_queue();
        }
        any
    }

    /// Puts the next packet into a buffer of the guest; `None` when there is none after all.
    fn fill(&mut self, memory: &queue::Guest, chain: queue::Chain) -> io::Result<Option<u32>> {
        let mut writer = chain.writer(memory).map_err(|_| io::ErrorKind::InvalidData)?;
        let room = writer.available_bytes().checked_sub(HEADER).ok_or(io::ErrorKind::InvalidData)?;
        let Some(header) = self.mux.give(room.min(MAX_DATA), &mut self.data) else { return Ok(None) };
        writer.write_all(&header.bytes())?;
        writer.write_all(&self.data)?;
        Ok(Some((HEADER + self.data.len()) as u32))
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
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // `struct virtio_vsock_config`: the guest's context id.
        let config = self.cid.to_le_bytes();
        let end = (offset as usize).saturating_add(size as usize);
        config.get(offset as usize..end).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        queue::exit_event()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn stop_vring(&mut self, queue: u32) -> io::Result<()> {
        if queue as usize == RX {
            self.mux.forget_all();
        }
        Ok(())
    }

    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[VringRwLock], _thread: usize) -> io::Result<()> {
        if u64::from(event) == SOCKETS {
            self.mux.look();
        }
        // An error would end the thread, and with it all connections.
        self.run(vrings);
        Ok(())
    }
}
