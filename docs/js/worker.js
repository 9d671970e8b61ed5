// The search runs in a worker, which a page from the disk may not start: there it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow;
      frame.answer = data => this.dispatchEvent(new MessageEvent("message", {data}));
      this.ready = new Promise(done => (frame.onload = done));
      this.inner.document.open();
      this.inner.document.write(`<body>
        <script>
          self.postMessage = data => frameElement.answer(data);
          self.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(done => {
            const script = document.createElement("script");
            script.src = url;
            script.onload = done;
            document.body.append(script);
          })), Promise.resolve());
        <\/script>
        <script src="${url}"><\/script>
      </body>`);
      this.inner.document.close();
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", {data})));
    }

    terminate() {
      this.inner.frameElement.remove();
    }
  };
}
