// Frames of subjects at values of the attributes: asked for many at a time, what is on the screen first, and kept.

const BATCH = 8;
const KEPT = 4000;

/** A value as the server tells values apart. */
export const place = (value) => Number(value.toFixed(6));

/** All places of a slider, so that any first part of them is spread over the whole range. */
export function spread(control) {
  const count = Math.round((control.high - control.low) / control.step) + 1;
  const left = new Set(Array.from({ length: count }, (_, i) => i));
  const order = [];
  for (let gap = 2 ** Math.ceil(Math.log2(Math.max(count, 2))); gap >= 1; gap /= 2) {
    for (let i = 0; i < count; i += gap) if (left.delete(i)) order.push(i);
  }
  return order.map((i) => place(Math.min(control.low + i * control.step, control.high)));
}

/** Text of a server's error, whatever came back. */
export async function reason(response) {
  try {
    return (await response.json()).error ?? `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}

export class Frames {
  /**
   * @param wanted gives what is on the screen: [{who, control, values, plane}], with control the slider that moves.
   * @param arrived called when frames have come.
   * @param failed called with a sentence.
   */
  constructor(wanted, arrived, failed) {
    this.wanted = wanted;
    this.arrived = arrived;
    this.failed = failed;
    this.kept = new Map();
    this.busy = false;
  }

  key(ask) {
    const others = Object.entries(ask.values).filter(([name]) => name !== ask.control.name).sort();
    return JSON.stringify([ask.who, ask.control.name, ask.plane, others]);
  }

  /** The frame of a value, or the nearest one that is there: {bitmap, value}, or null. */
  nearest(ask) {
    const found = this.kept.get(this.key(ask));
    if (!found || !found.size) return null;
    const value = place(ask.values[ask.control.name]);
    let best = null;
    for (const known of found.keys()) {
      if (best === null || Math.abs(known - value) < Math.abs(best - value)) best = known;
    }
    return { bitmap: found.get(best), value: best, exact: best === value };
  }

  /** Ask for what is missing, one request at a time; call it whenever something on the screen changes. */
  async fill() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (let next = this.next(); next; next = this.next()) await this.load(next.ask, next.values);
    } catch (error) {
      this.failed(error.message);
    } finally {
      this.busy = false;
      this.arrived();
    }
  }

  next() {
    const asks = this.wanted();
    const has = (ask, value) => this.kept.get(this.key(ask))?.has(value);
    for (const ask of asks) {
      const value = place(ask.values[ask.control.name]);
      if (!has(ask, value)) return { ask, values: [value] };
    }
    if (document.hidden) return null;
    for (const ask of asks) {
      const values = spread(ask.control).filter((value) => !has(ask, value)).slice(0, BATCH);
      if (values.length) return { ask, values };
    }
    return null;
  }

  async load(ask, values) {
    const query = new URLSearchParams({ who: ask.who, control: ask.control.name, values: values.join(","), plane: ask.plane });
    for (const [name, value] of Object.entries(ask.values)) {
      if (name !== ask.control.name) query.append("at", `${name}:${value}`);
    }
    const response = await fetch(`/api/frames?${query}`);
    if (!response.ok) throw new Error(await reason(response));
    const strip = await createImageBitmap(await response.blob());
    const width = strip.width / values.length;
    const key = this.key(ask);
    const found = this.kept.get(key) ?? new Map();
    this.kept.delete(key);
    this.kept.set(key, found); // the newest last
    for (const [i, value] of values.entries()) {
      found.set(value, await createImageBitmap(strip, i * width, 0, width, strip.height));
    }
    strip.close();
    this.forget();
    this.arrived();
  }

  forget() {
    let count = [...this.kept.values()].reduce((sum, found) => sum + found.size, 0);
    for (const [key, found] of this.kept) {
      if (count <= KEPT || this.kept.size <= 2) return;
      for (const bitmap of found.values()) bitmap.close();
      this.kept.delete(key);
      count -= found.size;
    }
  }
}
