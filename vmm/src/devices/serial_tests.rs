use super::*;

fn uart() -> Uart {
    let mut uart = Uart::new();
    uart.write(1, 0x01, &mut Vec::new());
    uart
}

#[test]
fn transmits() {
    let mut uart = uart();
    let mut out = Vec::new();
    for byte in *b"hello" {
        uart.write(0, byte, &mut out);
    }
    assert_eq!(out, b"hello");
    assert_eq!(uart.read(5) & 0x60, 0x60, "always ready for more");
}

#[test]
fn the_empty_transmitter_interrupts() {
    let mut uart = uart();
    uart.write(1, 0x02, &mut Vec::new());
    assert!(uart.line.take().rose);
    assert_eq!(uart.read(2) & 0x0f, 0x02);
    assert!(!uart.line.take().high, "reading the identification ends it");
    uart.write(0, b'x', &mut Vec::new());
    assert!(uart.line.take().rose);
}

#[test]
fn receives_with_an_edge() {
    let mut uart = uart();
    uart.receive(b"ab").unwrap();
    assert!(uart.line.take().rose);
    assert_eq!(uart.read(2) & 0x0f, 0x04);
    assert_eq!(
        (uart.read(0), uart.read(5) & 1, uart.read(0), uart.read(5) & 1),
        (b'a', 1, b'b', 0)
    );
    uart.receive(b"c").unwrap();
    assert!(uart.line.take().rose);
}

#[test]
fn the_fifo_has_an_end() {
    let mut uart = uart();
    assert_eq!(uart.room(), 64);
    uart.receive(&[b'x'; 60]).unwrap();
    let before = uart.save();
    let refused = uart.receive(&[b'y'; 5]);
    assert_eq!(
        refused,
        Err(DeviceError::WrongLength {
            what: "console input",
            expected: 4,
            got: 5
        })
    );
    assert_eq!(uart.save(), before, "nothing of it was taken");
    uart.receive(&[b'y'; 4]).unwrap();
    assert_eq!(uart.room(), 0);
}

#[test]
fn loopback_cuts_the_wire() {
    let mut uart = uart();
    let mut out = Vec::new();
    uart.write(4, MCR_LOOP, &mut out);
    uart.write(0, b'x', &mut out);
    assert!(out.is_empty());
    assert_eq!(uart.room(), 0);
    assert!(uart.receive(b"a").is_err());
    uart.receive(b"").unwrap();
    assert_eq!(uart.read(0), b'x');
}

#[test]
fn a_restored_uart_goes_on_without_a_new_edge() {
    let mut uart = uart();
    uart.receive(b"abc").unwrap();
    uart.line.take();
    let mut copy = Uart::restore(uart.save()).unwrap();
    assert!(!copy.line.take().rose);
    assert_eq!(copy.read(0), b'a');
    uart.read(0);
    assert_eq!(copy.save(), uart.save());
    let mut long = uart.save();
    long.in_buffer = vec![0; 65];
    assert!(Uart::restore(long).is_err());
}
