//! Decisions at random that a seed repeats.

/// xorshift64*: which decisions, not how good.
pub struct Dice(u64);

impl Dice {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Dice of the seed in this variable of the environment, else of a new one; the seed is printed.
    ///
    /// # Panics
    /// If the kernel has no random numbers.
    pub fn of(variable: &str) -> Self {
        let seed = std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0; 8];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("random numbers");
            u64::from_ne_bytes(bytes)
        });
        println!("{variable}={seed}");
        Self::new(seed)
    }

    /// Dice of the seed in this variable of the environment, else of this one, so that what everybody runs is the
    /// same each time; the seed is printed.
    pub fn repeated(variable: &str, seed: u64) -> Self {
        let seed = std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
        println!("{variable}={seed}");
        Self::new(seed)
    }

    /// A number below `sides`; 0 if there are none.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % sides.max(1)
    }
}
