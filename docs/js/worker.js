// A page from the disk may not start the worker in which the search runs: there it runs in a frame that is not shown.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.body.appendChild(document.createElement("iframe"));
      this.frame.style.display = "none";
      const inside = this.frame.contentWindow, page = inside.document;
      const load = source => new Promise((done, failed) => {
        const script = page.createElement("script");
        Object.assign(script, {src: source, onload: done, onerror: failed});
        page.body.append(script);
      });
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
      inside.importScripts = async (...sources) => {
        for (const source of sources) await load(source);
      };
      this.started = load(url);
    }

    async postMessage(data) {
      await this.started;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data}));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
