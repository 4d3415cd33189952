"""A WebSocket server of the package websockets, in a session: says again what it hears, and closes when it hears "bye"."""

import asyncio

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(4002, "as you wish")
        else:
            await socket.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 8000, subprotocols=["echo.v2", "echo.v1"], max_size=8 << 20) as server:
        await server.serve_forever()


asyncio.run(main())
