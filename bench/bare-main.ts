import { BareScript, type BareScriptOptions } from './bare-script.js';

/** The bare script as a process of its own, as the controller is one: it gets its options as JSON. */
const script = new BareScript(JSON.parse(process.argv[2] ?? '{}') as BareScriptOptions);
await script.start();
process.stdout.write('ready\n');
process.once('SIGTERM', () => void script.stop());
