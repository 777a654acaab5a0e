//! The FXSAVE area (Intel SDM volume 1, table 10-2) as `struct kvm_fpu` and back.

use kvm_bindings::kvm_fpu;

fn u16_at(area: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([area[at], area[at + 1]])
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Reads an area of at least 512 bytes.
pub fn unpack(area: &[u8]) -> kvm_fpu {
    let mut fpu = kvm_fpu {
        fcw: u16_at(area, 0),
        fsw: u16_at(area, 2),
        ftwx: area[4],
        last_opcode: u16_at(area, 6),
        last_ip: u64_at(area, 8),
        last_dp: u64_at(area, 16),
        mxcsr: u32::from(u16_at(area, 24)) | u32::from(u16_at(area, 26)) << 16,
        ..Default::default()
    };
    for (index, register) in fpu.fpr.iter_mut().enumerate() {
        register.copy_from_slice(&area[32 + index * 16..48 + index * 16]);
    }
    for (index, register) in fpu.xmm.iter_mut().enumerate() {
        register.copy_from_slice(&area[160 + index * 16..176 + index * 16]);
    }
    fpu
}

/// Writes into an area of at least 512 bytes; what `kvm_fpu` does not have stays.
pub fn pack(fpu: &kvm_fpu, area: &mut [u8]) {
    area[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    area[4] = fpu.ftwx;
    area[6..8].copy_from_slice(&fpu.last_opcode.to_le_bytes());
    area[8..16].copy_from_slice(&fpu.last_ip.to_le_bytes());
    area[16..24].copy_from_slice(&fpu.last_dp.to_le_bytes());
    area[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (index, register) in fpu.fpr.iter().enumerate() {
        area[32 + index * 16..48 + index * 16].copy_from_slice(register);
    }
    for (index, register) in fpu.xmm.iter().enumerate() {
        area[160 + index * 16..176 + index * 16].copy_from_slice(register);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let area: Vec<u8> = (0..512).map(|index| (index * 7 % 251) as u8).collect();
        let fpu = unpack(&area);
        let mut again = area.clone();
        again[0..5].fill(0);
        again[6..28].fill(0);
        again[32..416].fill(0);
        pack(&fpu, &mut again);
        assert_eq!(again, area);
    }
}
