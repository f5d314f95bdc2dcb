//! A guest's kernel as far as a vsock device sees one: memory, two rings, packets (virtio 1.2, 2.7 and 5.10).

use crate::PATIENCE;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub const CID: u64 = 3;
const HEADER: usize = 44;

pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
}

/// A packet; the ports are the host's and the guest's.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    pub op: u16,
    pub ports: (u32, u32),
    pub flags: u32,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn new(op: u16, ports: (u32, u32)) -> Self {
        Self { op, ports, ..Self::default() }
    }

    pub fn with(op: u16, ports: (u32, u32), data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..Self::new(op, ports) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.data.len());
        bytes.extend(CID.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(self.ports.1.to_le_bytes());
        bytes.extend(self.ports.0.to_le_bytes());
        bytes.extend((self.data.len() as u32).to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        // Room for what comes, nothing taken yet.
        bytes.extend(65536u32.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let op = u16::from_le_bytes([bytes[30], bytes[31]]);
        let data = bytes[HEADER..HEADER + word(24) as usize].to_vec();
        Self { op, ports: (word(16), word(20)), flags: word(32), data }
    }
}

/// Entries of a ring, each with a buffer of one page.
const SIZE: u16 = 128;
const BUFFER: u64 = 4096;
/// Where a ring's parts are, and its buffers; the next ring is behind them.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x3000;
const RING: u64 = BUFFERS + SIZE as u64 * BUFFER;
/// What the VMM calls the beginning of the memory.
const ADDRESS: u64 = 0x7000_0000;

struct Ring {
    base: u64,
    /// Descriptors that were offered and given back, ever.
    offered: u16,
    back: u16,
    kick: EventFd,
    _call: EventFd,
}

impl Ring {
    fn entry(&self, n: u16) -> u64 {
        self.base + BUFFERS + u64::from(n % SIZE) * BUFFER
    }

    /// Offers the next entry; the device sees it after [`Ring::publish`].
    fn offer(&mut self, memory: &File, length: u32, writable: bool) {
        let entry = self.offered % SIZE;
        let mut descriptor = self.entry(entry).to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend((u16::from(writable) * 2).to_le_bytes());
        descriptor.extend([0; 2]);
        memory.write_all_at(&descriptor, self.base + u64::from(entry) * 16).unwrap();
        memory.write_all_at(&entry.to_le_bytes(), self.base + AVAILABLE + 4 + u64::from(entry) * 2).unwrap();
        self.offered = self.offered.wrapping_add(1);
    }

    fn publish(&self, memory: &File) {
        memory.write_all_at(&self.offered.to_le_bytes(), self.base + AVAILABLE + 2).unwrap();
        self.kick.write(1).unwrap();
    }

    fn used(&self, memory: &File) -> u16 {
        let mut index = [0; 2];
        memory.read_exact_at(&mut index, self.base + USED + 2).unwrap();
        u16::from_le_bytes(index)
    }

    /// Entries that the device has.
    fn out(&self) -> u16 {
        self.offered.wrapping_sub(self.back)
    }
}

pub struct Guest {
    memory: File,
    _frontend: Frontend,
    rx: Ring,
    tx: Ring,
    reads: bool,
    /// Read, and not asked for yet.
    inbox: Vec<Packet>,
}

impl Guest {
    /// Sets the device up, as a VMM does.
    pub fn boot(vmm: UnixStream) -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(2 * RING).unwrap();
        let mut frontend = Frontend::from_stream(vmm, 3);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        // VERSION_1, and no event index: each kick is meant.
        frontend.set_features(features & (1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())).unwrap();
        let known = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(known & VhostUserProtocolFeatures::MQ).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: 2 * RING,
            userspace_addr: ADDRESS,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let mut rings = [0, 1].map(|queue: usize| {
            let base = queue as u64 * RING;
            let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
            frontend.set_vring_num(queue, SIZE).unwrap();
            let at = |part: u64| ADDRESS + base + part;
            let addresses = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: at(0),
                used_ring_addr: at(USED),
                avail_ring_addr: at(AVAILABLE),
                log_addr: None,
            };
            frontend.set_vring_addr(queue, &addresses).unwrap();
            frontend.set_vring_base(queue, 0).unwrap();
            frontend.set_vring_call(queue, &call).unwrap();
            frontend.set_vring_kick(queue, &kick).unwrap();
            frontend.set_vring_enable(queue, true).unwrap();
            Some(Ring { base, offered: 0, back: 0, kick, _call: call })
        });
        let mut ring = |n: usize| rings[n].take().unwrap();
        Self { memory, _frontend: frontend, rx: ring(0), tx: ring(1), reads: false, inbox: Vec::new() }
    }

    /// From here on there is always room for packets of the host.
    pub fn read_everything(&mut self) {
        self.reads = true;
        self.look();
    }

    /// Takes what the device has given, makes room for more, and what it has read is the guest's again.
    fn look(&mut self) {
        self.tx.back = self.tx.used(&self.memory);
        let used = self.rx.used(&self.memory);
        while self.rx.back != used {
            let entry = self.rx.base + USED + 4 + u64::from(self.rx.back % SIZE) * 8;
            let mut element = [0; 8];
            self.memory.read_exact_at(&mut element, entry).unwrap();
            let [id, length] = [0, 4].map(|at| u32::from_le_bytes(element[at..at + 4].try_into().unwrap()));
            let mut bytes = vec![0; length as usize];
            self.memory.read_exact_at(&mut bytes, self.rx.entry(id as u16)).unwrap();
            self.inbox.push(Packet::read(&bytes));
            self.rx.back = self.rx.back.wrapping_add(1);
        }
        if self.reads && self.rx.out() < SIZE {
            while self.rx.out() < SIZE {
                self.rx.offer(&self.memory, BUFFER as u32, true);
            }
            self.rx.publish(&self.memory);
        }
    }

    /// Offers packets; false if the device has not taken them all after `patience`.
    pub fn offer(&mut self, packets: &[Packet], patience: Duration) -> bool {
        let until = Instant::now() + patience;
        for packet in packets {
            while self.tx.out() == SIZE {
                self.look();
                if self.tx.out() == SIZE {
                    if Instant::now() > until {
                        return false;
                    }
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            let bytes = packet.bytes();
            self.memory.write_all_at(&bytes, self.tx.entry(self.tx.offered)).unwrap();
            self.tx.offer(&self.memory, bytes.len() as u32, false);
        }
        self.tx.publish(&self.memory);
        true
    }

    /// The same for one that reads what comes, so that it is taken.
    #[track_caller]
    pub fn send(&mut self, packets: &[Packet]) {
        assert!(self.offer(packets, PATIENCE), "the device takes nothing any more");
        self.look();
    }

    /// The first packet that is as wanted; what came before it is forgotten.
    #[track_caller]
    pub fn until(&mut self, wanted: impl Fn(&Packet) -> bool) -> Packet {
        let until = Instant::now() + PATIENCE;
        loop {
            self.look();
            let found = std::mem::take(&mut self.inbox).into_iter().find(|packet| wanted(packet));
            if let Some(packet) = found {
                return packet;
            }
            assert!(Instant::now() < until, "the device does not answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
