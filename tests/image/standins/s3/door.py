"""Pass connections at port 9000 on to the store."""

import asyncio
import contextlib


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there = await asyncio.open_connection("s3-store", 5000)
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", 9000)
    await server.serve_forever()


asyncio.run(main())
