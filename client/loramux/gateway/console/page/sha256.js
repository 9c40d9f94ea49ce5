// SHA-256 of a file, in pieces: the browser's own needs all bytes at once and a secure context.

const PIECE = 1 << 20;
const PRIMES = primes(64);
const K = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = Int32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

function primes(wanted) {
  const found = [];
  for (let number = 2; found.length < wanted; number += 1) {
    if (found.every((prime) => number % prime)) found.push(number);
  }
  return found;
}

/** The first 32 bits of the fractional part. */
function fraction(value) {
  return ((value - Math.floor(value)) * 2 ** 32) | 0;
}

export class Sha256 {
  #state = START.slice();
  #words = new Int32Array(64);
  #held = new Uint8Array(64);
  #numHeld = 0;
  #size = 0;

  update(data) {
    this.#size += data.length;
    let at = 0;
    if (this.#numHeld) {
      at = Math.min(64 - this.#numHeld, data.length);
      this.#held.set(data.subarray(0, at), this.#numHeld);
      this.#numHeld += at;
      if (this.#numHeld < 64) return;
      this.#block(this.#held, 0);
      this.#numHeld = 0;
    }
    for (; at + 64 <= data.length; at += 64) this.#block(data, at);
    this.#held.set(data.subarray(at));
    this.#numHeld = data.length - at;
  }

  hex() {
    const size = this.#size;
    const end = new Uint8Array(padding(size));
    end[0] = 0x80;
    new DataView(end.buffer).setBigUint64(end.length - 8, BigInt(size) * 8n);
    this.update(end);
    return Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  #block(data, at) {
    const w = this.#words;
    for (let i = 0; i < 16; i += 1, at += 4) {
      w[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
    }
    for (let i = 16; i < 64; i += 1) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    const s = this.#state;
    let a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
    for (let i = 0; i < 64; i += 1) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    s[0] += a; s[1] += b; s[2] += c; s[3] += d; s[4] += e; s[5] += f; s[6] += g; s[7] += h;
  }
}

/** The number of padding bytes after `size` bytes: a one bit, zeros, and the size in 8 bytes. */
function padding(size) {
  return 64 - ((size + 8) % 64) + 8;
}

/** Returns the digest of a file in hexadecimal; `progress` is called with the bytes done. */
export async function digestOf(file, progress, signal) {
  const sha256 = new Sha256();
  for (let at = 0; at < file.size; at += PIECE) {
    signal.throwIfAborted();
    sha256.update(new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer()));
    progress(Math.min(at + PIECE, file.size));
  }
  return sha256.hex();
}
