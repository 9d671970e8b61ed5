// Route samples through an exported file in Node.js, and compare with what Python found:
//     ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm install onnxruntime-node
//     node benchmarks/node.mjs model.onnx samples.json
// `samples.json` has `shape` of one input, `inputs` (flat numbers), `exits` and `logits` (flat), from
// `python benchmarks/node.py FOLDER samples.json`. Ends with status 1 where an exit differs.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { resolve } from 'node:path'

const ort = createRequire(resolve('package.json'))('onnxruntime-node')
const [file, samples] = process.argv.slice(2)
const { shape, inputs, exits, logits } = JSON.parse(readFileSync(samples))
const size = shape.reduce((a, b) => a * b, 1)
const session = await ort.InferenceSession.create(file)
let wrong = 0
for (const batch of [1, 2, 33]) {
  let differing = 0, largest = 0, classes = 0
  for (let start = 0; start < exits.length; start += batch) {
    const rows = Math.min(batch, exits.length - start)
    const pixels = Float32Array.from(inputs.slice(start * size, (start + rows) * size))
    const found = await session.run({ input: new ort.Tensor('float32', pixels, [rows, ...shape]) })
    classes = found.logits.dims[1]
    for (let row = 0; row < rows; row++) differing += Number(found.exit.data[row]) !== exits[start + row]
    found.logits.data.forEach((value, at) => {
      largest = Math.max(largest, Math.abs(value - logits[start * classes + at]))
    })
  }
  console.log(`batch ${batch}: ${differing} of ${exits.length} exits differ, logits by at most ${largest.toExponential(1)}`)
  wrong += differing
}
process.exit(wrong > 0 ? 1 : 0)
