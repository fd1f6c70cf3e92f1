// SPDX-License-Identifier: LGPL-2.1-or-later
// Runs trace_processor, as the Perfetto UI has it for browsers:
//     node trace_processor.js ENGINE_BUNDLE < requests > replies
"use strict";
const fs = require("fs");
const path = require("path");

const bundle = process.argv[2];
const requests = new Uint8Array(fs.readFileSync(0));
// What it finds in a browser's worker.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function () {};
globalThis.location = { href: "" };
globalThis.XMLHttpRequest = class {
  open(method, name) {
    this.response = fs.readFileSync(path.join(path.dirname(bundle), name));
    this.status = 200;
  }
  send() {}
};
console.log = console.warn = (text) => fs.writeSync(2, text + "\n");
const port = { postMessage: (reply) => fs.writeSync(1, reply) };
// Else it takes this for no browser.
delete globalThis.process;
(0, eval)(fs.readFileSync(bundle, "utf8"));
globalThis.onmessage({ data: port });
setTimeout(() => port.onmessage({ data: requests }), 0);
